// Construction and destruction of the decode engine: memory, threads and barriers.
#include "engine.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "dispatch.h"

namespace {

constexpr int kSpins = 2000;  // polls of a flag before sleeping: about 20 us, longer than most phases

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until the value of `flag` is no longer `old`.
void wait(std::atomic<uint32_t>& flag, uint32_t old) {
    for (int i = 0; i < kSpins; ++i) {
        if (flag.load(std::memory_order_acquire) != old) return;
        relax();
    }
    while (flag.load(std::memory_order_acquire) == old) flag.wait(old, std::memory_order_acquire);
}

void signal(std::atomic<uint32_t>& flag) {
    flag.fetch_add(1, std::memory_order_acq_rel);
    flag.notify_all();
}

// Synchronisation of the engine's threads: start of a token, tasks of a phase, barrier at its end.
struct Pool {
    explicit Pool(int64_t size) : size(size) {}

    // Claims the next task of the phase.
    int64_t next() { return task.fetch_add(1, std::memory_order_relaxed); }

    // Waits for all threads. The last one resets the tasks.
    void barrier() {
        const uint32_t current = phase.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived.store(0, std::memory_order_relaxed);
            task.store(0, std::memory_order_relaxed);
            signal(phase);
        } else {
            wait(phase, current);
        }
    }

    const int64_t size;
    alignas(64) std::atomic<int64_t> task{0};
    alignas(64) std::atomic<int64_t> arrived{0};
    alignas(64) std::atomic<uint32_t> phase{0};
    alignas(64) std::atomic<uint32_t> token{0};
    std::atomic<bool> stop{false};
};

constexpr size_t kCacheLine = 64;

// One allocation for several arrays, each aligned to a cache line: reserve() them all, then allocate().
class Arena {
  public:
    template <class T>
    void reserve(T*& pointer, int64_t n) {
        const size_t bytes = (n * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
        reservations.push_back({reinterpret_cast<void**>(&pointer), bytes});
    }

    // Sets the reserved pointers. Returns false if there is not enough memory.
    bool allocate() {
        size_t total = kCacheLine;
        for (const Reservation& reservation : reservations) total += reservation.bytes;
        memory.reset(static_cast<char*>(std::aligned_alloc(kCacheLine, total)));
        size_t offset = 0;
        for (const Reservation& reservation : reservations) {
            *reservation.pointer = memory.get() + offset;
            offset += reservation.bytes;
        }
        return memory != nullptr;
    }

  private:
    struct Reservation {
        void** pointer;
        size_t bytes;
    };
    struct Free {
        void operator()(char* p) const { std::free(p); }
    };
    std::vector<Reservation> reservations;
    std::unique_ptr<char, Free> memory;
};

}  // namespace

struct nx_engine {
    nx::EngineState state{};
    std::vector<nx_engine_layer> layers;
    std::vector<nx::Activation> activations;
    Arena arena;
    Pool pool;
    std::vector<std::thread> threads;
    const pid_t owner = getpid();

    explicit nx_engine(const nx_engine_config& config)
        : layers(config.layer, config.layer + config.layers),
          activations(config.threads),
          pool(config.threads) {
        state.config = config;
        state.config.layer = layers.data();
        state.activations = activations.data();
        state.pool = &pool;
        state.next = [](void* p) { return static_cast<Pool*>(p)->next(); };
        state.barrier = [](void* p) { static_cast<Pool*>(p)->barrier(); };
    }

    bool allocate() {
        const auto& c = state.config;
        const int64_t B = c.slots, qkv_width = (c.heads + 2 * c.kv_heads) * c.head_size;
        int64_t widest = c.mlp > c.width ? c.mlp : c.width;
        widest = c.heads * c.head_size > widest ? c.heads * c.head_size : widest;
        state.products_size = B * 512 > 4096 ? B * 512 : 4096;
        arena.reserve(state.stream, B * c.width);
        arena.reserve(state.qkv, B * qkv_width);
        arena.reserve(state.context, B * c.heads * c.head_size);
        arena.reserve(state.mlp_hidden, B * c.mlp);
        arena.reserve(state.products, 2 * c.threads * state.products_size);
        arena.reserve(state.scores, c.threads * (c.heads / c.kv_heads) * c.capacity);
        std::vector<float*> data(c.threads);
        for (int64_t t = 0; t < c.threads; ++t) {
            arena.reserve(data[t], B * widest);
            arena.reserve(activations[t].scales, B * widest / nx::kActivationBlock + 1);
            arena.reserve(activations[t].sums, B * widest / 32 + 1);
            arena.reserve(activations[t].pair_scales, B * (widest / 128 + 1) * 16);
            arena.reserve(activations[t].corrections, B * widest / 32 + 1);
        }
        const bool allocated = arena.allocate();
        for (int64_t t = 0; t < c.threads; ++t) activations[t].data = data[t];
        return allocated;
    }

    void start() {
        for (int64_t t = 1; t < state.config.threads; ++t)
            threads.emplace_back([this, t] {
                for (uint32_t seen = 0;; ++seen) {
                    wait(pool.token, seen);
                    if (pool.stop.load(std::memory_order_acquire)) return;
                    nx::engine_token(state, t);
                }
            });
    }

    ~nx_engine() {
        if (getpid() != owner) {  // after a fork this process has none of the threads
            for (std::thread& thread : threads) thread.detach();
            return;
        }
        pool.stop.store(true, std::memory_order_release);
        signal(pool.token);
        for (std::thread& thread : threads) thread.join();
    }
};

#define NX_REQUIRE(ok, message)                     \
    if (!(ok)) {                                    \
        nx::set_error("nx_engine_create", message); \
        return nullptr;                             \
    }

nx_engine* nx_engine_create(const nx_engine_config* c) {
    const bool quantized = c->precision == NX_INT8 || c->precision == NX_INT4;
    NX_REQUIRE(c->precision >= NX_F32 && c->precision <= NX_INT4, "unknown precision");
    NX_REQUIRE(c->kv_precision == c->precision || c->kv_precision == NX_F32 || c->kv_precision == NX_BF16,
               "kv_precision must be precision, NX_F32 or NX_BF16");
    NX_REQUIRE(c->head_precision >= NX_F32 && c->head_precision <= NX_INT8, "unknown head_precision");
    NX_REQUIRE(c->dtype == NX_F32 || c->dtype == NX_BF16, "dtype must be NX_F32 or NX_BF16");
    NX_REQUIRE(c->layers >= 0 && c->width > 0 && c->mlp > 0 && c->heads > 0 && c->kv_heads > 0 &&
                   c->head_size > 0 && c->vocab > 0 && c->slots > 0 && c->capacity > 0 && c->threads > 0,
               "every size must be at least 1");
    NX_REQUIRE(c->heads % c->kv_heads == 0, "kv_heads must divide heads");
    NX_REQUIRE(c->head_size % 2 == 0, "head_size must be even");
    NX_REQUIRE(!quantized || (c->width % 64 == 0 && c->mlp % 64 == 0 && c->heads * c->head_size % 64 == 0),
               "int8 and int4 need widths that are multiples of 64");
    NX_REQUIRE(c->head_precision != NX_INT8 || c->width % 64 == 0,
               "an int8 head needs a width that is a multiple of 64");
    try {
        std::unique_ptr<nx_engine> engine(new nx_engine(*c));
        NX_REQUIRE(engine->allocate(), "out of memory");
        engine->start();
        return engine.release();
    } catch (const std::bad_alloc&) {
        nx::set_error("nx_engine_create", "out of memory");
    } catch (const std::system_error&) {
        nx::set_error("nx_engine_create", "the system cannot start more threads");
    }
    return nullptr;
}

void nx_engine_destroy(nx_engine* engine) { delete engine; }

int nx_engine_step(nx_engine* engine, int64_t B, const int64_t* slots, const int64_t* positions,
                   const int64_t* ids, const float* embedded, float* logits, int64_t* best) {
    nx::EngineState& s = engine->state;
    const auto fail = [](const char* message) { return nx::set_error("nx_engine_step", message); };
    if (getpid() != engine->owner)
        return fail("the engine belongs to the parent process; create a new one after a fork");
    if (B < 0 || B > s.config.slots) return fail("more sequences than slots");
    for (int64_t b = 0; b < B; ++b) {
        if (slots[b] < 0 || slots[b] >= s.config.slots) return fail("no such slot");
        if (positions[b] < 0 || positions[b] >= s.config.capacity) return fail("the cache is full");
        if (!embedded && (ids[b] < 0 || ids[b] >= s.config.vocab)) return fail("no such token");
        for (int64_t other = 0; other < b; ++other)
            if (slots[other] == slots[b]) return fail("two sequences in one slot");
    }
    if (B == 0) return NX_OK;
    s.B = B;
    s.slots = slots;
    s.positions = positions;
    s.ids = ids;
    s.embedded = embedded;
    s.logits = logits;
    s.best = best;
    engine->pool.task.store(0, std::memory_order_relaxed);
    signal(engine->pool.token);
    nx::engine_token(s, 0);
    return NX_OK;
}
