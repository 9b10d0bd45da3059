// Convolutions of kernels/ against their definition in double precision, on whatever machine this runs on: prints the
// width of a pack, and per shape the largest error of output, input gradient and weight gradient, over its typical size.

#include <cmath>
#include <cstdio>
#include <vector>

#include "layers.h"

using namespace esper;

namespace {

// Numbers from -1 to 1 by a linear congruence.
struct Draw {
    std::uint64_t state = 1;
    float operator()() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<float>(static_cast<double>(state >> 40) / (1 << 23) - 1.0);
    }
};

struct Error {
    double most = 0, square = 0, count = 0;
    void add(double found, double wanted) {
        most = std::max(most, std::fabs(found - wanted)), square += wanted * wanted, ++count;
    }
    double relative() const { return most / std::sqrt(square / count); }
};

double at(const Conv& c, const std::vector<Vec>& map, i64 channel, i64 row, i64 column, i64 lane) {
    const bool within = row >= 0 && column >= 0 && row < c.height && column < c.width;
    return within ? map[channel * c.area() + row * c.width + column][lane] : 0.0;
}

void check(const Conv& c) {
    Draw draw;
    const auto map = [&](i64 channels) {
        std::vector<Vec> made(channels * c.area());
        for (Vec& v : made)
            for (i64 lane = 0; lane < PACK; ++lane) v[lane] = draw();
        return made;
    };
    const std::vector<Vec> x = map(c.in), g = map(c.out);
    std::vector<Vec> y(g.size()), gx(x.size());
    std::vector<float> w(c.in * c.out * c.taps()), gw(w.size());
    for (float& each : w) each = draw();
    conv_forward(c, x.data(), w.data(), nullptr, y.data());
    conv_backward_input(c, g.data(), w.data(), false, gx.data());
    conv_backward_weight(c, x.data(), g.data(), gw.data());
    Error forward, input, weight;
    std::vector<double> wanted_gx(x.size() * PACK), wanted_gw(w.size());
    const i64 pad = c.kernel / 2;
    for (i64 o = 0; o < c.out; ++o)
        for (i64 h = 0; h < c.height; ++h)
            for (i64 col = 0; col < c.width; ++col)
                for (i64 lane = 0; lane < PACK; ++lane) {
                    double sum = 0;
                    for (i64 i = 0; i < c.in; ++i)
                        for (i64 k = 0; k < c.taps(); ++k) {
                            const i64 row = h + k / c.kernel - pad, column = col + k % c.kernel - pad;
                            const double number = at(c, x, i, row, column, lane), each = at(c, g, o, h, col, lane);
                            const i64 tap = (o * c.in + i) * c.taps() + k;
                            sum += w[tap] * number, wanted_gw[tap] += each * number;
                            if (row >= 0 && column >= 0 && row < c.height && column < c.width)
                                wanted_gx[(i * c.area() + row * c.width + column) * PACK + lane] += each * w[tap];
                        }
                    forward.add(y[o * c.area() + h * c.width + col][lane], sum);
                }
    for (std::size_t n = 0; n < wanted_gx.size(); ++n) input.add(gx[n / PACK][n % PACK], wanted_gx[n]);
    for (std::size_t n = 0; n < w.size(); ++n) weight.add(gw[n], wanted_gw[n]);
    std::printf("%.3g %.3g %.3g\n", forward.relative(), input.relative(), weight.relative());
}

}  // namespace

int main() {
    std::printf("%d\n", LANES);
    const Conv shapes[] = {{1, 3, 8, 8, 16, 3}, {1, 8, 16, 8, 8, 3}, {1, 5, 6, 7, 7, 3}, {1, 16, 9, 4, 4, 3},
                           {1, 2, 3, 5, 6, 3},  {1, 1, 8, 8, 8, 3},  {1, 3, 7, 6, 9, 5}, {1, 7, 5, 3, 4, 1}};
    for (const Conv& c : shapes) check(c);
}
