// What the C++ tests share: random sizes, checks, a loop over the instruction sets.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "nanoemox.h"

inline std::mt19937 random_engine(0);

inline int64_t size(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_engine);
}

// Prints the failed check and ends the program.
inline void require(bool ok, const std::string& check) {
    if (ok) return;
    std::printf("%s: %s (%s)\n", nx_isa(), check.c_str(), nx_last_error());
    std::exit(1);
}

// Calls body() at every usable instruction set.
template <class Body>
void for_each_level(Body body) {
    const std::string levels = nx_isa_levels();
    for (size_t begin = 0; begin < levels.size();) {
        const size_t space = levels.find(' ', begin),
                     end = space == std::string::npos ? levels.size() : space;
        const std::string name = levels.substr(begin, end - begin);
        require(nx_set_isa(name.c_str()) == NX_OK && name == nx_isa(), "set_isa " + name);
        body();
        begin = end + 1;
    }
}
