// read: measures the memory bandwidth, which limits every kernel that streams weights.
#include "kernels.h"
#include "simd.h"

int64_t nx::NX_ISA::read(const void* data, int64_t n) {
    constexpr int64_t kChunk = 1 << 16;  // bytes per task
    const char* bytes = static_cast<const char*>(data);
    int64_t total = 0;
#pragma omp parallel for schedule(dynamic) reduction(+ : total)
    for (int64_t i = 0; i < n / kChunk; ++i) {
        constexpr int kUnroll = 8;  // independent sums, so that none waits for another
        VecInt sums[kUnroll] = {};
        for (const char *p = bytes + i * kChunk, *end = p + kChunk; p < end; p += kUnroll * kBytes)
            for (int j = 0; j < kUnroll; ++j) {
                VecInt v;
                std::memcpy(&v, p + j * kBytes, kBytes);
                sums[j] += v;
            }
        for (int j = 1; j < kUnroll; ++j) sums[0] += sums[j];
        for (int lane = 0; lane < kLanes; ++lane) total += sums[0][lane];
    }
    return total;
}
