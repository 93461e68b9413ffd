// What the other sources of the C ABI use of dispatch.cpp.
#pragma once

#include "engine.h"

namespace nx {

// Keeps the message for nx_last_error(); returns NX_INVALID.
int refuse(const char* function, const char* why);

// engine_token of the instruction set in use.
void engine_token(const EngineState& state, int64_t thread);

}  // namespace nx
