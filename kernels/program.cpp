// Makes and releases programs (program.h), which networks (network.h) run.

#include "program.h"

extern "C" {

// Samples that are computed side by side.
esper::i64 esper_pack() { return esper::PACK; }

// A program from its code; see esper/tezzeret/native/programs.py. It lives until `esper_release`, as its setup must.
void* esper_program(const esper::i64* code, const void* setup) {
    return new esper::Program(code, static_cast<const esper::Program*>(setup));
}
void esper_release(void* program) { delete static_cast<esper::Program*>(program); }

// Numbers that a network gives beside its output.
esper::i64 esper_aux(const void* program) { return static_cast<const esper::Program*>(program)->aux; }
}
