// Every instruction of a program forward, on one pack.

#include "operands.h"

namespace esper {

void Pass::forward(const Instruction& i) {
    const Operands of{program, i};
    const Register &from = program.registers[i.from], &to = program.registers[i.to];
    const i64 channels = to.channels, area = to.area(), size = to.size();
    const Vec *x = value(i.from), *other = i.reads_two() ? value(i.other) : nullptr;
    Vec* y = value(i.to);
    const float *w = params + i.weight, *b = i.bias < 0 ? nullptr : params + i.bias;
    switch (i.op) {
        case CONV: return conv_forward(of.conv(), x, w, b, y);
        case LINEAR: return linear_forward(of.linear(), x, w, b, y);
        case EMBED: return embed_forward(x, from.size(), w, i.kernel, y);
        case GROUP_NORM:
            return group_norm_forward(x, channels, area, i.groups, w, b, i.rectify, stats + i.stats, y);
        case BATCH_NORM: {
            const float* mean = header() + i.header;
            return affine_forward(x, channels, area, mean, mean + channels, w, b, i.rectify, y);
        }
        case AFFINE: {
            const float *mean = buffers + i.constant, *variance = mean + channels;
            for (i64 c = 0; c < channels; ++c) {
                const float inverse = 1.0f / std::sqrt(variance[c] + EPSILON);
                affine_forward(x + c * area, 1, area, mean + c, &inverse, w + c, b + c, i.rectify, y + c * area);
            }
            return;
        }
        case POOL: return pool_forward(x, channels, from.height, from.width, y);
        case MEAN: return mean_forward(x, size, from.size() / size, y);
        case ADD: return pair_forward<false>(of.pairs(), x, other, y);
        case SCALE: return pair_forward<true>(of.pairs(), x, other, y);
        case SHIFT: return pair_forward<false>(of.pairs(), x, w, y);
        case GAIN: return pair_forward<true>(of.pairs(), x, w, y);
        case FADE: {
            const float openness = std::tanh(w[0]);
            for (i64 n = 0; n < size; ++n) y[n] = x[n] + openness * (other[n] - x[n]);
            return;
        }
        case LOAD:
            for (i64 n = 0; n < size; ++n) y[n] = zero() + w[n];
            return;
        case CONST: return const_forward(of.table(), size, y);
        case TAKE: return take_forward(x, of.table(), size, y);
        case MATMUL: return matmul_forward(of.matrices(), x, other, y);
        case SOFTMAX: return softmax_forward(x, i.groups, size / i.groups, y);
        case LARGEST: return largest_forward(x, size, from.size() / size, y);
        case NORMALISE: return normalise_forward(x, i.groups, size / i.groups, i.number(), stats + i.stats, y);
        default: return map_forward(i, x, size, y);
    }
}

// What a batch norm must know of all samples.
void Pass::close_batch_norm(const Instruction& i) {
    const i64 channels = program.registers[i.to].channels;
    float *mean = header() + i.header, *inverse = mean + channels, *given = aux + i.aux;
    for (i64 c = 0; c < channels; ++c) {
        Moments& m = sums->moments[c];
        for (i64 share = 1; share < shares_of(packs_of(batch)); ++share) {
            const Moments& part = sums->moments[share * sums->channels + c];
            m.merge(part.count, part.mean, part.squares);
        }
        mean[c] = given[c] = static_cast<float>(m.mean);
        inverse[c] = 1.0f / std::sqrt(static_cast<float>(m.squares / m.count) + EPSILON);
        given[channels + c] = static_cast<float>(m.squares / std::max(m.count - 1, 1.0));
    }
}

void Pass::run_forward(i64 first, i64 last, bool always_load, const Hook& load, const Hook& leave) {
    for (i64 segment = 0; segment < program.segments; ++segment) {
        const Instruction* norm = norm_behind(segment);
        const i64 channels = norm ? program.registers[norm->to].channels : 0;
        for (i64 number = first; number < last; ++number) {
            enter(number);
            if (program.loads_input[segment] || always_load) load();
            for (const Instruction& i : program.instructions)
                if (i.segment == segment) forward(i);
            if (norm) {
                Moments* moments = sums->moments + number / SHARE * sums->channels;
                if (number % SHARE == 0) std::fill_n(moments, channels, Moments{});
                batch_norm_observe(value(norm->from), channels, program.registers[norm->to].area(), samples, moments);
            }
            if (segment == program.segments - 1) leave();
        }
        if (norm) meet([&] { close_batch_norm(*norm); });
    }
}

}  // namespace esper
