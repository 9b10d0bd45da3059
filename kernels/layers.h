// Layers of one network on a pack of samples, forward and backward. Maps are [channels][height * width] vectors.
//
// "add": the result is added to what is there, because the value has been read by another layer too.

#pragma once

#include <algorithm>
#include <cmath>

#include "products.h"

namespace esper {

constexpr float EPSILON = 1e-5f;  // added to variances; esper.kasmina.layers has the same

struct Conv {
    i64 groups, in, out, height, width, kernel;  // channels per group
    i64 area() const { return height * width; }
    i64 taps() const { return kernel * kernel; }
    i64 middle() const { return taps() / 2; }
    // On a map of one position only the tap in the middle of a kernel meets a number.
    bool is_product() const { return kernel == 1 || area() == 1; }
};

void conv_forward(const Conv& c, const Vec* x, const float* w, const float* bias, Vec* y);
void conv_backward_input(const Conv& c, const Vec* g, const float* w, bool add, Vec* gx);
void conv_backward_weight(const Conv& c, const Vec* x, const Vec* g, float* gw);

}  // namespace esper
