// Vector registers of the instruction set that is compiled for: the one place that knows how wide and how many.

#pragma once

namespace esper {

// LANES: numbers (float32) in a register. Vectors of more than that are taken apart through memory.
#if defined(ESPER_LANES)  // a row of the table on another machine, for tests
constexpr int LANES = ESPER_LANES, REGISTERS = ESPER_REGISTERS;
#elif defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else  // SSE, and whatever else there is
constexpr int LANES = 4, REGISTERS = 16;
#endif

// Whether a tile stays in registers: its sums, a row of what they read, and the number that multiplies the row.
constexpr bool fits(int sums, int row) { return sums + row + 1 <= REGISTERS; }

}  // namespace esper
