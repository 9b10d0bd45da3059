// Every instruction of a program backward, on one pack.

#include "operands.h"

namespace esper {

void Pass::backward(const Instruction& i, const BackwardStep& step) {
    const Operands of{program, i};
    const Register &from = program.registers[i.from], &to = program.registers[i.to];
    const i64 channels = to.channels, area = to.area(), size = to.size();
    const Vec *x = value(i.from), *y = value(i.to), *other = i.reads_two() ? value(i.other) : nullptr;
    Vec *gy = grad(i.to), *gx = step.want[0] ? grad(i.from) : nullptr;
    Vec* g_other = i.reads_two() && step.want[1] ? grad(i.other) : nullptr;
    const float* w = params + i.weight;
    float *gw = grad_params + i.weight, *gb = i.bias < 0 ? nullptr : grad_params + i.bias;
    const bool add = step.add[0];
    const Both both{x, other, gy, gx, g_other, {step.add[0], step.add[1]}};
    switch (i.op) {
        case CONV:
            if (!given) conv_backward_weight(of.conv(), x, gy, gw);
            for (i64 c = 0; gb && !given && c < channels; ++c) gb[c] += sum_lanes(total(gy + c * area, area));
            if (gx) conv_backward_input(of.conv(), gy, w, add, gx);
            return;
        case LINEAR:
            if (!given) linear_backward_weight(of.linear(), x, gy, gw);
            if (gb && !given) pair_backward_numbers<false>({of.linear().rows, of.linear().outputs, 1}, x, gy, gb);
            if (gx) linear_backward_input(of.linear(), gy, w, add, gx);
            return;
        case EMBED:
            if (!given) embed_backward(x, from.size(), gy, samples, i.kernel, gw);
            if (gx && !add) std::fill_n(gx, from.size(), zero());  // a token is no quantity
            return;
        case GROUP_NORM:
            return group_norm_backward(x, y, channels, area, i.groups, w, i.rectify, stats + i.stats, gy, gw, gb, add,
                                       gx);
        case BATCH_NORM: {
            const float *mean = header() + i.header, count = static_cast<float>(batch * area);
            const float *sum_gx = totals + i.weight, *sum_g = totals + i.bias;
            return batch_norm_backward(x, channels, area, count, samples, mean, mean + channels, w, gy, sum_gx, sum_g,
                                       add, gx);
        }
        case POOL: return pool_backward(x, channels, from.height, from.width, gy, add, gx);
        case MEAN: return mean_backward(gy, size, from.size() / size, add, gx);
        case ADD: return pair_backward<false>(of.pairs(), both);
        case SCALE: return pair_backward<true>(of.pairs(), both);
        case SHIFT:
            if (!given) pair_backward_numbers<false>(of.pairs(), x, gy, gw);
            if (gx) pair_backward_x<false>(of.pairs(), w, gy, add, gx);
            return;
        case GAIN:
            if (!given) pair_backward_numbers<true>(of.pairs(), x, gy, gw);
            if (gx) pair_backward_x<true>(of.pairs(), w, gy, add, gx);
            return;
        case FADE: return fade_backward(both, size, w, gw);
        case LOAD:
            for (i64 n = 0; n < size && !given; ++n) gw[n] += sum_lanes(gy[n]);
            return;
        case CONST: return;
        case TAKE: return take_backward(gy, of.table(), size, from.size(), add, gx);
        case MATMUL:
            if (gx) matmul_backward_x(of.matrices(), other, gy, add, gx);
            if (g_other) matmul_backward_other(of.matrices(), x, gy, step.add[1], g_other);
            return;
        case SOFTMAX: return softmax_backward(y, gy, i.groups, size / i.groups, add, gx);
        case LARGEST: return largest_backward(x, y, gy, size, from.size() / size, i.constant, add, gx);
        case NORMALISE: return normalise_backward(y, stats + i.stats, gy, i.groups, size / i.groups, add, gx);
        default: return map_backward(i, x, y, gy, size, add, gx);
    }
}

// First half of a batch norm's backward.
void Pass::sum_batch_norm(const Instruction& i) {
    const Register& to = program.registers[i.to];
    const float* mean = header() + i.header;
    batch_norm_sums(value(i.from), value(i.to), to.channels, to.area(), mean, mean + to.channels, i.rectify,
                    grad(i.to), grad_params + i.weight, grad_params + i.bias);
}

void Pass::run_backward(const Backward& plan, i64 first, i64 last, bool always_load, const Hook& load,
                        const Hook& take, const Hook& leave) {
    for (i64 segment = program.segments - 1; segment >= 0; --segment) {
        for (i64 number = first; number < last; ++number) {
            enter(number);
            if (plan.loads_input[segment] || always_load) load();
            for (i64 n : plan.again)
                if (program.instructions[n].segment == segment) forward(program.instructions[n]);
            if (segment == program.segments - 1) take();
            for (const BackwardStep& step : plan.steps) {
                const Instruction& i = program.instructions[step.instruction];
                if (i.op == BATCH_NORM && i.segment == segment) sum_batch_norm(i);
                else if (i.gives() == segment) backward(i, step);
            }
            if (segment == 0) leave();
        }
        if (const Instruction* norm = segment ? norm_behind(segment - 1) : nullptr) {
            const i64 channels = program.registers[norm->to].channels;
            meet([&] { add_shares(norm->weight, channels), add_shares(norm->bias, channels); });
        }
    }
}

}  // namespace esper
