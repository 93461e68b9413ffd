// The decode engine's life: its memory, its threads and their meetings.
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

constexpr int kSpins = 2000;  // looks at a flag before sleeping: about 20 us, longer than a phase takes to end

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until `flag` no longer holds `old`.
void wait(std::atomic<uint32_t>& flag, uint32_t old) {
    for (int i = 0; i < kSpins; ++i) {
        if (flag.load(std::memory_order_acquire) != old) return;
        relax();
    }
    while (flag.load(std::memory_order_acquire) == old) flag.wait(old, std::memory_order_acquire);
}

void raise(std::atomic<uint32_t>& flag) {
    flag.fetch_add(1, std::memory_order_acq_rel);
    flag.notify_all();
}

// Threads that wait for a token, and the meeting at the end of each phase.
struct Pool {
    explicit Pool(int64_t size) : size(size) {}

    int64_t next() { return task.fetch_add(1, std::memory_order_relaxed); }

    void barrier() {
        const uint32_t now = phase.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived.store(0, std::memory_order_relaxed);
            task.store(0, std::memory_order_relaxed);
            raise(phase);
        } else {
            wait(phase, now);
        }
    }

    const int64_t size;
    alignas(64) std::atomic<int64_t> task{0};
    alignas(64) std::atomic<int64_t> arrived{0};
    alignas(64) std::atomic<uint32_t> phase{0};
    alignas(64) std::atomic<uint32_t> token{0};
    std::atomic<bool> stop{false};
};

constexpr size_t kLine = 64;

// Memory in lines, from one allocation: sizes are added up first, then handed out.
class Arena {
  public:
    template <class T>
    void ask(T*& where, int64_t n) {
        wishes.push_back({reinterpret_cast<void**>(&where), (n * sizeof(T) + kLine - 1) / kLine * kLine});
    }
    bool give() {
        size_t total = kLine;
        for (const Wish& wish : wishes) total += wish.bytes;
        memory.reset(static_cast<char*>(std::aligned_alloc(kLine, total)));
        size_t at = 0;
        for (const Wish& wish : wishes) {
            *wish.where = memory.get() + at;
            at += wish.bytes;
        }
        return memory != nullptr;
    }

  private:
    struct Wish {
        void** where;
        size_t bytes;
    };
    struct Free {
        void operator()(char* p) const { std::free(p); }
    };
    std::vector<Wish> wishes;
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
        : layers(config.layer, config.layer + config.layers), activations(config.threads), pool(config.threads) {
        state.config = config;
        state.config.layer = layers.data();
        state.activations = activations.data();
        state.pool = &pool;
        state.next = [](void* p) { return static_cast<Pool*>(p)->next(); };
        state.barrier = [](void* p) { static_cast<Pool*>(p)->barrier(); };
    }

    bool allocate() {
        const auto& c = state.config;
        const int64_t B = c.slots, heads = (c.heads + 2 * c.kv_heads) * c.head_size;
        int64_t widest = c.mlp > c.width ? c.mlp : c.width;
        widest = c.heads * c.head_size > widest ? c.heads * c.head_size : widest;
        state.spare_size = B * 512 > 4096 ? B * 512 : 4096;
        arena.ask(state.stream, B * c.width);
        arena.ask(state.qkv, B * heads);
        arena.ask(state.attended, B * c.heads * c.head_size);
        arena.ask(state.active, B * c.mlp);
        arena.ask(state.spare, 2 * c.threads * state.spare_size);
        arena.ask(state.scores, c.threads * (c.heads / c.kv_heads) * c.capacity);
        std::vector<float*> held(c.threads);
        for (int64_t t = 0; t < c.threads; ++t) {
            arena.ask(held[t], B * widest);
            arena.ask(activations[t].scales, B * widest / nx::kActivationBlock + 1);
            arena.ask(activations[t].sums, B * widest / 32 + 1);
            arena.ask(activations[t].spread, B * (widest / 128 + 1) * 16);
            arena.ask(activations[t].lift, B * widest / 32 + 1);
        }
        const bool ok = arena.give();
        for (int64_t t = 0; t < c.threads; ++t) activations[t].data = held[t];
        return ok;
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
        if (getpid() != owner) {  // after a fork the threads are not here
            for (std::thread& thread : threads) thread.detach();
            return;
        }
        pool.stop.store(true, std::memory_order_release);
        raise(pool.token);
        for (std::thread& thread : threads) thread.join();
    }
};

#define NX_WANT(ok, why)                        \
    if (!(ok)) {                                \
        nx::refuse("nx_engine_create", why);    \
        return nullptr;                         \
    }

nx_engine* nx_engine_create(const nx_engine_config* c) {
    const bool quantized = c->precision == NX_INT8 || c->precision == NX_INT4;
    NX_WANT(c->precision >= NX_F32 && c->precision <= NX_INT4, "unknown precision");
    NX_WANT(c->kv_precision == c->precision || c->kv_precision == NX_F32 || c->kv_precision == NX_BF16,
            "keys and values have the precision of the rest, or a floating one");
    NX_WANT(c->head_precision >= NX_F32 && c->head_precision <= NX_INT8, "unknown precision of the head");
    NX_WANT(c->dtype == NX_F32 || c->dtype == NX_BF16, "dtype must be NX_F32 or NX_BF16");
    NX_WANT(c->layers >= 0 && c->width > 0 && c->mlp > 0 && c->heads > 0 && c->kv_heads > 0 && c->head_size > 0 &&
                c->vocab > 0 && c->slots > 0 && c->capacity > 0 && c->threads > 0,
            "every size must be at least 1");
    NX_WANT(c->heads % c->kv_heads == 0, "kv_heads must divide heads");
    NX_WANT(c->head_size % 2 == 0, "head_size must be even");
    NX_WANT(!quantized || (c->width % 64 == 0 && c->mlp % 64 == 0 && c->heads * c->head_size % 64 == 0),
            "int8 and int4 want widths that 64 divides");
    NX_WANT(c->head_precision != NX_INT8 || c->width % 64 == 0, "an int8 head wants a width that 64 divides");
    try {
        std::unique_ptr<nx_engine> engine(new nx_engine(*c));
        NX_WANT(engine->allocate(), "out of memory");
        engine->start();
        return engine.release();
    } catch (const std::bad_alloc&) {
        nx::refuse("nx_engine_create", "out of memory");
    } catch (const std::system_error&) {
        nx::refuse("nx_engine_create", "the system gives no more threads");
    }
    return nullptr;
}

void nx_engine_destroy(nx_engine* engine) { delete engine; }

int nx_engine_step(nx_engine* engine, int64_t B, const int64_t* slots, const int64_t* positions, const int64_t* ids,
                   const float* rows, float* logits, int64_t* best) {
    nx::EngineState& s = engine->state;
    const auto refuse = [](const char* why) { return nx::refuse("nx_engine_step", why); };
    if (getpid() != engine->owner) return refuse("this engine belongs to the process that forked; make a new one");
    if (B < 0 || B > s.config.slots) return refuse("more rows than slots");
    for (int64_t b = 0; b < B; ++b) {
        if (slots[b] < 0 || slots[b] >= s.config.slots) return refuse("no such slot");
        if (positions[b] < 0 || positions[b] >= s.config.capacity) return refuse("the cache is full");
        if (!rows && (ids[b] < 0 || ids[b] >= s.config.vocab)) return refuse("no such token");
        for (int64_t other = 0; other < b; ++other)
            if (slots[other] == slots[b]) return refuse("two rows in one slot");
    }
    if (B == 0) return NX_OK;
    s.B = B, s.slots = slots, s.positions = positions, s.ids = ids, s.rows = rows, s.logits = logits, s.best = best;
    engine->pool.task.store(0, std::memory_order_relaxed);
    raise(engine->pool.token);
    nx::engine_token(s, 0);
    return NX_OK;
}
