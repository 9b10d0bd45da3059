// Convolutions 3 wide by minimal filtering: half of the products. See winograd.cpp.

#pragma once

#include "layers.h"

namespace esper {

// How weights are read: as they lie, or for the gradient of the input, with channels exchanged and taps reversed.
struct Weights {
    const float* first;
    i64 out, in, tap, group;  // strides
};

// Where it pays. Four neighbours of a row are computed together, so that a row of another width computes some in vain;
// so are four output channels; and `in` times `out` products are to pay for the transforms of `in` and `out` channels.
// A sum whose terms are all 0 is only 0 to rounding here, so that a relu behind it may let a gradient through that the
// definition stops: narrow maps, where that was seen (an inserted identity layer on maps of 8), keep the direct form.
inline bool filters(const Conv& c, i64 in, i64 out) {
    const i64 products = 6 * ((c.width + 3) / 4), direct = 3 * c.width - 2;
    return c.kernel == 3 && c.width >= 10 && out >= 3 && in * out >= 8 && 3 * products < 2 * direct;
}

// What convolutions.cpp does for one group, where it `filters`.
void filter(const Conv& c, const Vec* x, i64 in, i64 out, const Weights& s, const float* bias, bool add, Vec* y);
void filter_gradient(const Conv& c, const Vec* x, const Vec* g, float* gw);

}  // namespace esper
