// Products of matrices, tile by tile.

#include "products.h"

namespace esper {

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
void product(const Sizes& s, const Grid<const Vec>& x, const Grid<const Other>& other, const float* bias,
                    bool add, const Grid<Vec>& y) {
    i64 c = 0;
    const auto by = [&] { return Grid<const Other>{other.at + c * other.column, other.row, other.column}; };
    const auto to = [&] { return Grid<Vec>{y.at + c * y.column, y.row, y.column}; };
    const auto shift = [&] { return bias ? bias + c : nullptr; };
    for (; c + 4 <= s.columns; c += 4) product_columns<4>(s.rows, s.inner, x, by(), shift(), add, to());
    for (; c + 2 <= s.columns; c += 2) product_columns<2>(s.rows, s.inner, x, by(), shift(), add, to());
    for (; c < s.columns; ++c) product_columns<1>(s.rows, s.inner, x, by(), shift(), add, to());
}

template void product(const Sizes&, const Grid<const Vec>&, const Grid<const Vec>&, const float*, bool,
                      const Grid<Vec>&);
template void product(const Sizes&, const Grid<const Vec>&, const Grid<const float>&, const float*, bool,
                      const Grid<Vec>&);

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
void contract(const Sizes& s, const Grid<const Vec>& x, const Grid<const Vec>& g, const Grid<float>& gw) {
    constexpr int C = fits(4 * 4, 4) ? 4 : 2;
    i64 c = 0;
    const auto from = [&] { return Grid<const Vec>{g.at + c * g.column, g.row, g.column}; };
    const auto to = [&] { return Grid<float>{gw.at + c * gw.row, gw.row, gw.column}; };
    for (; c + C <= s.columns; c += C) contract_columns<C>(s.rows, s.inner, x, from(), to());
    for (; c < s.columns; ++c) contract_columns<1>(s.rows, s.inner, x, from(), to());
}

}  // namespace esper
