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

// Rows of a tile of so many columns; or positions of one of so many channels. A kernel of five reads two numbers more
// for them than one of three; the compiler takes those from the cache, which costs less than a smaller tile.
constexpr int positions(int channels) {
    for (int t = 4; t > 1; t /= 2)
        if (fits(channels * t, t + 2)) return t;
    return 1;
}

// R rows of C columns of the product.
template <int R, int C, typename Other>
inline void product_tile(const Grid<const Vec>& x, const Grid<const Other>& other, i64 inner, const float* bias,
                         bool add, const Grid<Vec>& y) {
    Vec sum[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c)
            sum[r][c] = bias ? zero() + bias[c] : add ? y.at[r * y.row + c * y.column] : zero();
    const Vec* from = x.at;
    const Other* by = other.at;
    for (i64 k = 0; k < inner; ++k, from += x.column, by += other.row) {
        Vec v[R];
        for (int r = 0; r < R; ++r) v[r] = from[r * x.row];
        for (int c = 0; c < C; ++c) {
            const Other each = by[c * other.column];
            for (int r = 0; r < R; ++r) sum[r][c] += v[r] * each;
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) y.at[r * y.row + c * y.column] = sum[r][c];
}

template <int C, typename Other>
inline void product_columns(i64 rows, i64 inner, const Grid<const Vec>& x, const Grid<const Other>& other,
                            const float* bias, bool add, const Grid<Vec>& y) {
    constexpr int R = positions(C);
    i64 r = 0;
    const auto from = [&] { return Grid<const Vec>{x.at + r * x.row, x.row, x.column}; };
    const auto to = [&] { return Grid<Vec>{y.at + r * y.row, y.row, y.column}; };
    for (; r + R <= rows; r += R) product_tile<R, C>(from(), other, inner, bias, add, to());
    if constexpr (R > 2)
        for (; r + 2 <= rows; r += 2) product_tile<2, C>(from(), other, inner, bias, add, to());
    for (; r < rows; ++r) product_tile<1, C>(from(), other, inner, bias, add, to());
}

// y [rows, columns] = x [rows, inner] other [inner, columns], with a bias by column.
template <typename Other>
inline void product(const Sizes& s, const Grid<const Vec>& x, const Grid<const Other>& other, const float* bias,
                    bool add, const Grid<Vec>& y) {
    i64 c = 0;
    const auto by = [&] { return Grid<const Other>{other.at + c * other.column, other.row, other.column}; };
    const auto to = [&] { return Grid<Vec>{y.at + c * y.column, y.row, y.column}; };
    const auto shift = [&] { return bias ? bias + c : nullptr; };
    for (; c + 4 <= s.columns; c += 4) product_columns<4>(s.rows, s.inner, x, by(), shift(), add, to());
    for (; c + 2 <= s.columns; c += 2) product_columns<2>(s.rows, s.inner, x, by(), shift(), add, to());
    for (; c < s.columns; ++c) product_columns<1>(s.rows, s.inner, x, by(), shift(), add, to());
}

// C columns of g times four of x, summed over rows and samples: `gw` [C, 4].
template <int C>
inline void contract_tile(i64 rows, const Grid<const Vec>& x, const Grid<const Vec>& g, i64 inputs,
                          const Grid<float>& gw) {
    Vec sum[C][4] = {};
    for (i64 r = 0; r < rows; ++r) {
        Vec v[4];
        for (int i = 0; i < 4; ++i) v[i] = x.at[r * x.row + (i < inputs ? i : 0) * x.column];
        for (int o = 0; o < C; ++o) {
            const Vec each = g.at[r * g.row + o * g.column];
            for (int i = 0; i < 4; ++i) sum[o][i] += each * v[i];
        }
    }
    for (int o = 0; o < C; ++o) {
        const Quad sums = sum_lanes4(sum[o][0], sum[o][1], sum[o][2], sum[o][3]);
        for (i64 i = 0; i < inputs; ++i) gw.at[o * gw.row + i * gw.column] += sums[i];
    }
}

template <int C>
inline void contract_columns(i64 rows, i64 inputs, const Grid<const Vec>& x, const Grid<const Vec>& g,
                             const Grid<float>& gw) {
    for (i64 i = 0; i < inputs; i += 4)
        contract_tile<C>(rows, {x.at + i * x.column, x.row, x.column}, g, std::min<i64>(4, inputs - i),
                         {gw.at + i * gw.column, gw.row, gw.column});
}

// gw [columns, inner] += g [rows, columns] x [rows, inner], summed over samples.
inline void contract(const Sizes& s, const Grid<const Vec>& x, const Grid<const Vec>& g, const Grid<float>& gw) {
    constexpr int C = fits(4 * 4, 4) ? 4 : 2;
    i64 c = 0;
    const auto from = [&] { return Grid<const Vec>{g.at + c * g.column, g.row, g.column}; };
    const auto to = [&] { return Grid<float>{gw.at + c * gw.row, gw.row, gw.column}; };
    for (; c + C <= s.columns; c += C) contract_columns<C>(s.rows, s.inner, x, from(), to());
    for (; c < s.columns; ++c) contract_columns<1>(s.rows, s.inner, x, from(), to());
}

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
