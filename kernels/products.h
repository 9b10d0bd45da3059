// Products of matrices on a pack of samples: of packs with packs, or with a network's own numbers. See layers.h.

#pragma once

#include <algorithm>

#include "simd.h"

namespace esper {

// A matrix wherever its numbers are: the steps from row to row and from column to column.
template <typename Number>
struct Grid {
    Number* at;
    i64 row, column;
};

struct Sizes {
    i64 rows, inner, columns;
};

// Rows of a tile of so many columns; or positions of one of so many channels.
constexpr int positions(int channels) {
    for (int t = 4; t > 1; t /= 2)
        if (fits(channels * t, t)) return t;
    return 1;
}

// y [rows, columns] = x [rows, inner] other [inner, columns], with a bias by column.
template <typename Other>
void product(const Sizes& s, const Grid<const Vec>& x, const Grid<const Other>& other, const float* bias, bool add,
             const Grid<Vec>& y);

// gw [columns, inner] += g [rows, columns] x [rows, inner], summed over samples.
void contract(const Sizes& s, const Grid<const Vec>& x, const Grid<const Vec>& g, const Grid<float>& gw);

// The affine map of a network's own weight [outputs, inputs]: x [rows, inputs] -> y [rows, outputs].
struct Linear {
    i64 rows, inputs, outputs;
};

inline void linear_forward(const Linear& l, const Vec* x, const float* w, const float* bias, Vec* y) {
    product<float>({l.rows, l.inputs, l.outputs}, {x, l.inputs, 1}, {w, 1, l.inputs}, bias, false, {y, l.outputs, 1});
}
inline void linear_backward_input(const Linear& l, const Vec* gy, const float* w, bool add, Vec* gx) {
    product<float>({l.rows, l.outputs, l.inputs}, {gy, l.outputs, 1}, {w, l.inputs, 1}, nullptr, add,
                   {gx, l.inputs, 1});
}
inline void linear_backward_weight(const Linear& l, const Vec* x, const Vec* gy, float* gw) {
    contract({l.rows, l.inputs, l.outputs}, {x, l.inputs, 1}, {gy, l.outputs, 1}, {gw, l.inputs, 1});
}

// Products of matrices: per group x [rows, inner] times other [inner, columns].
struct Matrices {
    i64 groups;
    Sizes sizes;
};

inline void matmul_forward(const Matrices& m, const Vec* x, const Vec* other, Vec* y) {
    const auto& [rows, inner, columns] = m.sizes;
    for (i64 g = 0; g < m.groups; ++g, x += rows * inner, other += inner * columns, y += rows * columns)
        product<Vec>(m.sizes, {x, inner, 1}, {other, columns, 1}, nullptr, false, {y, columns, 1});
}
inline void matmul_backward_x(const Matrices& m, const Vec* other, const Vec* gy, bool add, Vec* gx) {
    const auto& [rows, inner, columns] = m.sizes;
    for (i64 g = 0; g < m.groups; ++g, gx += rows * inner, other += inner * columns, gy += rows * columns)
        product<Vec>({rows, columns, inner}, {gy, columns, 1}, {other, 1, columns}, nullptr, add, {gx, inner, 1});
}
inline void matmul_backward_other(const Matrices& m, const Vec* x, const Vec* gy, bool add, Vec* g_other) {
    const auto& [rows, inner, columns] = m.sizes;
    for (i64 g = 0; g < m.groups; ++g, x += rows * inner, g_other += inner * columns, gy += rows * columns)
        product<Vec>({inner, rows, columns}, {x, 1, inner}, {gy, columns, 1}, nullptr, add, {g_other, columns, 1});
}

}  // namespace esper
