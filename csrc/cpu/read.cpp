// read: how fast memory can be read, the ceiling of everything that streams weights.
#include "kernels.h"
#include "simd.h"

int64_t nx::NX_ISA::read(const void* data, int64_t n) {
    constexpr int64_t kStretch = 1 << 16;  // bytes that a thread reads at a time
    const char* bytes = static_cast<const char*>(data);
    int64_t total = 0;
#pragma omp parallel for schedule(dynamic) reduction(+ : total)
    for (int64_t i = 0; i < n / kStretch; ++i) {
        constexpr int kMany = 8;  // streams, so that sums wait for memory and not for each other
        VecInt sums[kMany] = {};
        for (const char *p = bytes + i * kStretch, *end = p + kStretch; p < end; p += kMany * kBytes)
            for (int j = 0; j < kMany; ++j) {
                VecInt v;
                std::memcpy(&v, p + j * kBytes, kBytes);
                sums[j] += v;
            }
        for (int j = 1; j < kMany; ++j) sums[0] += sums[j];
        for (int lane = 0; lane < kLanes; ++lane) total += sums[0][lane];
    }
    return total;
}
