// Convolutions of many small networks on a CPU: stride 1, "same" zero padding, one weight per network.
//
// Samples are packed so that a convolution becomes sums of shifted copies of one long row: every image row is followed
// by k/2 zero columns and every image by k/2 zero rows, which serve the row before and the row after alike. A tap of
// the kernel is then a constant shift, whatever the image's size, and the inner loops have no edges. The results that
// fall on padding are dropped when the rows are unpacked.
//
// Work is cut into tasks of (network, group of samples); the groups follow from the sizes of one sample alone, so a
// network's result does not depend on how many others there are, nor on the number of threads.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "simd.h"

namespace {

using i64 = std::int64_t;

constexpr int WIDTH = esper::LANES;
constexpr int BLOCK = 4;                                    // output channels computed together
constexpr int VECTORS = esper::fits(BLOCK * 4, 4) ? 4 : 2;  // of each
constexpr i64 ROW = 2048;           // positions packed into one row, about: a few rows fit the first-level cache
constexpr i64 MOST_TAPS = 11 * 11;  // the largest kernel
constexpr i64 STEP = WIDTH * VECTORS;

typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float))));
typedef float Loose __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4)));

inline Vector load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Loose*>(to) = value; }

inline i64 ceiling(i64 a, i64 b) { return (a + b - 1) / b; }

// Sizes of a convolution, and of the packed form of its samples.
struct Shape {
    i64 batch, groups, in, out, height, width, kernel;  // channels are per group
    i64 pad = kernel / 2, taps = kernel * kernel, area = height * width;
    i64 pitch = width + pad;               // a packed image row
    i64 image = (height + pad) * pitch;    // a packed image
    i64 margin = ceiling(pad * pitch + pad, WIDTH) * WIDTH;  // zeros before the first image and behind the last
    i64 tasks = ceiling(batch, std::max<i64>(1, ROW / image));
    i64 together = ceiling(batch, tasks);  // samples of a task
    i64 length = ceiling(together * image, STEP) * STEP;
    i64 stride = length + 2 * margin;
    i64 weights = groups * out * in * taps;

    explicit Shape(const i64* n)
        : batch(n[1]), groups(n[2]), in(n[3]), out(n[4]), height(n[5]), width(n[6]), kernel(n[7]) {}
    i64 shift(i64 tap) const { return (tap / kernel - pad) * pitch + tap % kernel - pad; }
};

// Copies one image row; the usual widths as a few registers.
inline void copy(float* to, const float* from, i64 width) {
    switch (width) {
        case 4: std::memcpy(to, from, 4 * sizeof(float)); return;
        case 8: std::memcpy(to, from, 8 * sizeof(float)); return;
        case 16: std::memcpy(to, from, 16 * sizeof(float)); return;
        default: std::memcpy(to, from, width * sizeof(float));
    }
}

// Memory that grows, aligned for the widest registers.
class Buffer {
    std::vector<float> memory;

  public:
    float* room(i64 numbers) {
        const i64 slack = 64 / sizeof(float);
        if (static_cast<i64>(memory.size()) < numbers + slack) memory.resize(numbers + slack);
        const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
        return reinterpret_cast<float*>((address + 63) / 64 * 64);
    }
};

// Packs `count` samples of all channels; channel c begins at c * stride + margin.
const float* pack(const Shape& s, const float* from, i64 sample, i64 count, i64 channels, Buffer& buffer) {
    float* rows = buffer.room(channels * s.stride);
    std::memset(rows, 0, channels * s.stride * sizeof(float));
    for (i64 c = 0; c < channels; ++c)
        for (i64 b = 0; b < count; ++b) {
            const float* source = from + b * sample + c * s.area;
            float* target = rows + c * s.stride + s.margin + b * s.image;
            for (i64 h = 0; h < s.height; ++h)
                copy(target + h * s.pitch, source + h * s.width, s.width);
        }
    return rows;
}

void unpack(const Shape& s, const float* row, i64 count, i64 sample, float* to) {
    for (i64 b = 0; b < count; ++b)
        for (i64 h = 0; h < s.height; ++h)
            copy(to + b * sample + h * s.width, row + b * s.image + h * s.pitch, s.width);
}

// C output rows from `in` input rows: result[c][f] = sum over i, tap of weight[i][tap][c] * rows[i][f + shift(tap)].
template <int C>
void correlate(const Shape& s, const float* rows, i64 in, const float* weight, float* result) {
    const i64 length = s.length, taps = s.taps, stride = s.stride;
    i64 shifts[MOST_TAPS];
    for (i64 tap = 0; tap < taps; ++tap) shifts[tap] = s.margin + s.shift(tap);
    for (i64 f = 0; f < length; f += STEP) {
        Vector sum[C][VECTORS] = {};
        const float* w = weight;
        for (i64 i = 0; i < in; ++i)
            for (i64 tap = 0; tap < taps; ++tap, w += C) {
                const float* x = rows + i * stride + f + shifts[tap];
                Vector value[VECTORS];
                for (int r = 0; r < VECTORS; ++r) value[r] = load(x + r * WIDTH);
                for (int c = 0; c < C; ++c)
                    for (int r = 0; r < VECTORS; ++r) sum[c][r] += w[c] * value[r];
            }
        for (int c = 0; c < C; ++c)
            for (int r = 0; r < VECTORS; ++r) store(result + c * length + f + r * WIDTH, sum[c][r]);
    }
}

// weight[i][tap] of C output channels: sum over f of grad[c][f] * rows[i][f + shift(tap)], for one input row.
template <int C>
void contract(const Shape& s, const float* row, const float* grad, float* weight, i64 step) {
    for (i64 first = 0; first < s.taps; first += 3) {
        const i64 count = std::min<i64>(3, s.taps - first);
        const float* x[3];
        for (i64 t = 0; t < 3; ++t) x[t] = row + s.margin + s.shift(first + std::min(t, count - 1));
        const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *g0 = grad + s.margin;
        const i64 length = s.length, stride = s.stride;
        Vector sum[C][3] = {};
        for (i64 f = 0; f < length; f += WIDTH) {
            const Vector v0 = load(x0 + f), v1 = load(x1 + f), v2 = load(x2 + f);
            for (int c = 0; c < C; ++c) {
                const Vector g = load(g0 + c * stride + f);
                sum[c][0] += g * v0, sum[c][1] += g * v1, sum[c][2] += g * v2;
            }
        }
        for (int c = 0; c < C; ++c)
            for (i64 t = 0; t < count; ++t) {
                float total = 0.0f;
                for (int v = 0; v < WIDTH; ++v) total += sum[c][t][v];
                weight[c * step + first + t] += total;
            }
    }
}

template <template <int> class Call, typename... Arguments>
void dispatch(i64 channels, Arguments&&... arguments) {
    switch (channels) {
        case 1: return Call<1>::run(arguments...);
        case 2: return Call<2>::run(arguments...);
        case 3: return Call<3>::run(arguments...);
        default: return Call<4>::run(arguments...);
    }
}
template <int C>
struct Correlate {
    template <typename... A>
    static void run(A&&... a) { correlate<C>(a...); }
};
template <int C>
struct Contract {
    template <typename... A>
    static void run(A&&... a) { contract<C>(a...); }
};

// Weights of a block of output channels in the order in which `correlate` reads them: [in][tap][block].
// `transposed`: as the gradient of the input needs them, channels exchanged and taps reversed.
void arrange(const Shape& s, const float* weight, i64 group, i64 first, i64 count, bool transposed, float* to) {
    const i64 in = transposed ? s.out : s.in;
    for (i64 i = 0; i < in; ++i)
        for (i64 tap = 0; tap < s.taps; ++tap)
            for (i64 c = 0; c < count; ++c) {
                const i64 from = transposed ? ((group * s.out + i) * s.in + first + c) * s.taps + s.taps - 1 - tap
                                            : ((group * s.out + first + c) * s.in + i) * s.taps + tap;
                *to++ = weight[from];
            }
}

// One task: the samples' output channels (or, transposed, the gradient of their input channels).
void convolve(const Shape& s, const float* x, i64 sample, i64 count, const float* weight, bool transposed, float* y) {
    const i64 in = transposed ? s.out : s.in, out = transposed ? s.in : s.out;
    thread_local Buffer packed, results, weights;
    const float* rows = pack(s, x, sample, count, s.groups * in, packed);
    float* result = results.room(BLOCK * s.length);
    float* arranged = weights.room(BLOCK * in * s.taps);
    for (i64 group = 0; group < s.groups; ++group)
        for (i64 first = 0; first < out; first += BLOCK) {
            const i64 channels = std::min<i64>(BLOCK, out - first);
            arrange(s, weight, group, first, channels, transposed, arranged);
            const float* source = rows + group * in * s.stride;
            dispatch<Correlate>(channels, s, source, in, arranged, result);
            for (i64 c = 0; c < channels; ++c)
                unpack(s, result + c * s.length, count, s.groups * out * s.area,
                       y + (group * out + first + c) * s.area);
        }
}

// One task: this group of samples' share of a network's weight gradient, added to `weight`.
void gather(const Shape& s, const float* x, i64 x_sample, const float* grad, i64 g_sample, i64 count, float* weight) {
    thread_local Buffer packed, packed_grads;
    const float* rows = pack(s, x, x_sample, count, s.groups * s.in, packed);
    const float* grads = pack(s, grad, g_sample, count, s.groups * s.out, packed_grads);
    for (i64 group = 0; group < s.groups; ++group)
        for (i64 first = 0; first < s.out; first += BLOCK) {
            const i64 channels = std::min<i64>(BLOCK, s.out - first);
            for (i64 i = 0; i < s.in; ++i)
                dispatch<Contract>(channels, s, rows + (group * s.in + i) * s.stride,
                                   grads + (group * s.out + first) * s.stride,
                                   weight + ((group * s.out + first) * s.in + i) * s.taps, s.in * s.taps);
        }
}

}  // namespace

extern "C" {

// y[n][b][groups*out][h][w] = x * weight[n][groups*out][in][k][k]; transposed: the gradient of x from that of y.
// sizes: networks, batch, groups, in, out, height, width, kernel (channels per group); strides: of x, in numbers.
void esper_convolve(const float* x, i64 x_network, i64 x_sample, const float* weight, float* y, const i64* sizes,
                    int transposed, int threads) {
    const Shape s(sizes);
    const i64 total = sizes[0] * s.tasks;
    const i64 outputs = s.groups * (transposed ? s.in : s.out) * s.area;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1 && total > 1)
    for (i64 task = 0; task < total; ++task) {
        const i64 n = task / s.tasks, b = task % s.tasks * s.together, count = std::min(s.together, s.batch - b);
        convolve(s, x + n * x_network + b * x_sample, x_sample, count, weight + n * s.weights, transposed != 0,
                 y + (n * s.batch + b) * outputs);
    }
}

// weight[n] = gradient of the weights from x and the gradient of the output; `partial`: [n][tasks][weights], zeroed.
void esper_contract(const float* x, i64 x_network, i64 x_sample, const float* grad, i64 g_network, i64 g_sample,
                    float* partial, float* weight, const i64* sizes, int threads) {
    const Shape s(sizes);
    const i64 total = sizes[0] * s.tasks;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1 && total > 1)
    for (i64 task = 0; task < total; ++task) {
        const i64 n = task / s.tasks, b = task % s.tasks * s.together, count = std::min(s.together, s.batch - b);
        gather(s, x + n * x_network + b * x_sample, x_sample, grad + n * g_network + b * g_sample, g_sample, count,
               partial + task * s.weights);
    }
    for (i64 n = 0; n < sizes[0]; ++n)
        for (i64 task = 0; task < s.tasks; ++task)
            for (i64 w = 0; w < s.weights; ++w)
                weight[n * s.weights + w] += partial[(n * s.tasks + task) * s.weights + w];
}

// Tasks per network, for the size of `partial`.
i64 esper_tasks(const i64* sizes) {
    return Shape(sizes).tasks;
}
}
