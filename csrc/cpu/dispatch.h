// Functions of dispatch.cpp that the other sources of the C ABI call.
#pragma once

#include "engine.h"

namespace nx {

// Stores the message for nx_last_error(); returns NX_INVALID.
int set_error(const char* function, const char* message);

// Runs engine_token at the instruction set in use.
void engine_token(const EngineState& state, int64_t thread);

}  // namespace nx
