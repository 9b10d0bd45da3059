// Products of matrices, tile by tile.

#include "products.h"

#include <vector>

namespace esper {
namespace {

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
        for (int r = 0; r < R; ++r) v[r] = held(from[r * x.row]);
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

// C columns of g times I of x, summed over rows and samples: `gw` [C, I].
template <int C, int I>
inline void contract_tile(i64 rows, const Grid<const Vec>& x, const Grid<const Vec>& g, const Grid<float>& gw) {
    Vec sum[C][I] = {};
    const Vec *from = x.at, *by = g.at;
    for (i64 r = 0; r < rows; ++r, from += x.row, by += g.row) {
        Vec v[I];
        for (int i = 0; i < I; ++i) v[i] = held(from[i * x.column]);
        for (int o = 0; o < C; ++o) {
            const Vec each = held(by[o * g.column]);
            for (int i = 0; i < I; ++i) sum[o][i] += each * v[i];
        }
    }
    const LaneSums<C * I> sums(sum[0]);
    for (int o = 0; o < C; ++o) {
        const float* from = sums.numbers() + o * I;
        float* to = gw.at + o * gw.row;
        if (I == 4 && gw.column == 1)
            store4(to, load4(to) + load4(from));
        else
            for (int i = 0; i < I; ++i) to[i * gw.column] += from[i];
    }
}

// So many inputs in a tile of four columns.
constexpr int INPUTS = fits(4 * 4, 4) ? 4 : 3;

// The columns of a matrix by tiles of W, each in one piece [rows, W] with a row to spare; what is left over stays where it
// was. Rows that lie a power of two apart share so few places of the cache that a tile read there is never found again.
inline i64 tile_size(i64 rows, i64 width) { return (rows + 1) * width; }
template <int W>
inline void copy_tiles(const Grid<const Vec>& from, i64 rows, i64 columns, Vec* to) {
    for (i64 r = 0; r < rows; ++r) {
        const Vec* row = from.at + r * from.row;
        Vec* place = to + r * W;
        for (i64 c = 0; c + W <= columns; c += W, place += tile_size(rows, W))
            for (int w = 0; w < W; ++w) place[w] = row[(c + w) * from.column];
    }
}

// One tile, while the next is fetched.
template <int W>
inline void copy_tile(const Grid<const Vec>& from, i64 rows, Vec* to) {
    for (i64 r = 0; r < rows; ++r, to += W)
        for (int w = 0; w < W; ++w) {
            const Vec* number = from.at + r * from.row + w * from.column;
            __builtin_prefetch(number + W * from.column);
            to[w] = *number;
        }
}

// What copies fill, as large as it ever was.
thread_local std::vector<Vec> copies;

// `tiled`: x by tiles of `INPUTS`, or null.
template <int C>
inline void contract_columns(i64 rows, i64 inputs, const Grid<const Vec>& x, const Vec* tiled, const Grid<const Vec>& g,
                             const Grid<float>& gw) {
    i64 i = 0;
    const auto from = [&] {
        return tiled ? Grid<const Vec>{tiled + i / INPUTS * tile_size(rows, INPUTS), INPUTS, 1}
                     : Grid<const Vec>{x.at + i * x.column, x.row, x.column};
    };
    const auto to = [&] { return Grid<float>{gw.at + i * gw.column, gw.row, gw.column}; };
    for (; i + INPUTS <= inputs; i += INPUTS) contract_tile<C, INPUTS>(rows, from(), g, to());
    for (tiled = nullptr; i < inputs; ++i) contract_tile<C, 1>(rows, from(), g, to());
}

}  // namespace

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

// gw [columns, inner] += g [rows, columns] x [rows, inner], summed over samples.
void contract(const Sizes& s, const Grid<const Vec>& x, const Grid<const Vec>& g, const Grid<float>& gw) {
    constexpr i64 LEAST_ROWS = 8, LEAST_COLUMNS = 16;  // for which copies pay
    const bool copied = s.rows >= LEAST_ROWS && s.columns >= LEAST_COLUMNS;
    Vec *tile = nullptr, *tiled = nullptr;
    if (copied) {
        const std::size_t size = tile_size(s.rows, 4) + tile_size(s.rows, s.inner);
        copies.resize(std::max(copies.size(), size));
        tile = copies.data(), tiled = tile + tile_size(s.rows, 4);
        copy_tiles<INPUTS>(x, s.rows, s.inner, tiled);
    }
    i64 c = 0;
    const auto from = [&] { return Grid<const Vec>{g.at + c * g.column, g.row, g.column}; };
    const auto to = [&] { return Grid<float>{gw.at + c * gw.row, gw.row, gw.column}; };
    for (; c + 4 <= s.columns; c += 4) {
        if (copied) copy_tile<4>(from(), s.rows, tile);
        contract_columns<4>(s.rows, s.inner, x, tiled, copied ? Grid<const Vec>{tile, 4, 1} : from(), to());
    }
    for (; c < s.columns; ++c) contract_columns<1>(s.rows, s.inner, x, tiled, from(), to());
}

}  // namespace esper
