// Memory of a thread.

#pragma once

#include <cstdlib>

#include "simd.h"

namespace esper {

// It only grows.
class Scratch {
    float* memory = nullptr;
    i64 size = 0;

  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory); }
    Vec* room(i64 vectors) {
        if (vectors > size) {
            std::free(memory);
            const i64 bytes = (vectors * sizeof(Vec) + 63) / 64 * 64;
            memory = static_cast<float*>(std::aligned_alloc(64, bytes));
            size = vectors;
        }
        return reinterpret_cast<Vec*>(memory);
    }
};

}  // namespace esper
