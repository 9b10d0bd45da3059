// A program: the layers of a module in order, and what follows from them for running it forward and backward.
//
// Registers hold the values between layers; register 0 is the input. What a convolution or a product of matrices gives is
// kept for backward, everything else is cheap and computed again. A batch norm needs all samples before it gives any: it
// begins a new segment, and what a later segment reads is kept.
//
// Numbers that follow from a network's parameters alone are what another program makes of its row (setup): the weights of
// this one are in that row and, behind it, in these.

#pragma once

#include <vector>

#include "simd.h"

namespace esper {

enum Op : i64 {
    CONV, GROUP_NORM, BATCH_NORM, AFFINE, RELU, POOL, MEAN, ADD, SCALE, SIGMOID, TIMES, FADE, TANH, GELU, GELU_TANH,
    SOFTPLUS, EXP, LOG, SQRT, RECIPROCAL, ABS, PLUS, LOAD, CONST, TAKE, MATMUL, SOFTMAX, LARGEST, NORMALISE, LINEAR,
    EMBED, GAIN, SHIFT
};

// What backward reads again: of what an instruction reads first, second, and of what it gave. `given`: no numbers of the
// network learn.
struct Reread {
    bool from, other, to;
};
inline Reread reread_by(i64 op, bool rectify, bool given) {
    switch (op) {
        case CONV: case LINEAR: case EMBED: case GAIN: return {!given, false, false};
        case ADD: case MEAN: case TIMES: case PLUS: case LOAD: case CONST: case TAKE: case SHIFT:
            return {false, false, false};
        case SCALE: case FADE: case MATMUL: return {true, true, false};
        case RELU: case SIGMOID: case TANH: case EXP: case SQRT: case RECIPROCAL: case SOFTMAX: case NORMALISE:
            return {false, false, true};
        case LARGEST: return {true, false, true};
        default: return {true, false, rectify};
    }
}

// A number that is written as the integer of the bits of a double.
inline float number_of(i64 bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return static_cast<float>(value);
}

struct Instruction {
    i64 op, to, from, other, weight, bias, groups, kernel, rectify, constant;
    i64 segment = 0, stats = 0, header = 0, aux = 0;  // where group norm's, batch norm's numbers are
    bool reads_two() const { return op == ADD || op == SCALE || op == FADE || op == MATMUL; }
    i64 sources() const { return op == LOAD || op == CONST ? 0 : reads_two() ? 2 : 1; }
    bool reads(i64 r) const { return sources() && (from == r || (reads_two() && other == r)); }
    float number() const { return number_of(constant); }
    i64 gives() const { return segment - (op == BATCH_NORM); }  // the segment in which backward gives its gradient
};
constexpr i64 FIELDS = 10;

struct Register {
    i64 channels, height, width, segment = 0, value = 0, grad = 0;
    bool kept = false, crosses = false, trained = false;
    i64 area() const { return height * width; }
    i64 size() const { return channels * area(); }
};

struct BackwardStep {
    i64 instruction;
    bool want[2], add[2];  // gradients of `from` and `other`
};

// What backward does, for one combination of what is asked for.
struct Backward {
    std::vector<BackwardStep> steps;
    std::vector<i64> again;          // instructions to run forward once more, in order
    std::vector<bool> loads_input;   // per segment
};

struct Program {
    std::vector<Register> registers;
    std::vector<Instruction> instructions;
    std::vector<i64> tables;
    const Program* setup;
    i64 output, params, aux = 0, segments = 1;
    i64 values = 0, stats = 0, grads = 0, crossing = 0, kept = 0, header = 0;  // sizes, in vectors
    std::vector<bool> loads_input;
    Backward backward[8];  // input's gradient wanted + 2 * output's value wanted + 4 * numbers given

    Program(const i64* code, const Program* setup) : setup(setup) {
        const i64 count = code[0], length = code[1], entries = code[4];
        output = code[2], params = code[3];
        code += 5;
        for (i64 r = 0; r < count; ++r, code += 3) registers.push_back({code[0], code[1], code[2]});
        for (i64 i = 0; i < length; ++i, code += FIELDS)
            instructions.push_back({code[0], code[1], code[2], code[3], code[4], code[5], code[6], code[7], code[8],
                                    code[9]});
        tables.assign(code, code + entries);
        cut_into_segments();
        place();
        for (int asked = 0; asked < 8; ++asked) backward[asked] = plan(asked & 1, asked & 2, asked & 4);
    }

    // Numbers of a network's row: its parameters, and what follows from them.
    i64 row() const { return params + (setup ? setup->registers[setup->output].size() : 0); }

    // Vectors that one network keeps for backward.
    i64 kept_by_network(i64 packs) const { return header + packs * kept; }

  private:
    // Register r is read in a segment, and its gradient given in another (batch norm's in the one before).
    void read(i64 r, i64 segment, i64 gives) {
        Register& source = registers[r];
        if (r && source.segment != segment) source.kept = true;
        if (source.segment != gives) source.crosses = true;
    }

    void cut_into_segments() {
        i64 floats = 0;
        for (Instruction& i : instructions) {
            Register &to = registers[i.to], &from = registers[i.from];
            if (i.op == BATCH_NORM) {
                ++segments;
                i.header = floats, floats += 2 * to.channels;
                i.aux = aux, aux += 2 * to.channels;
            }
            i.segment = to.segment = segments - 1;
            to.kept = i.op == CONV || i.op == LINEAR || i.op == MATMUL;
            to.trained = (i.sources() && from.trained) || i.weight >= 0 || (i.reads_two() && registers[i.other].trained);
            if (i.sources()) read(i.from, i.segment, i.gives());
            if (i.reads_two()) read(i.other, i.segment, i.segment);
            if (i.op == BATCH_NORM) to.crosses = true;  // its gradient is read in the segment before
        }
        header = packs_of(floats);
        loads_input.assign(segments, false);
        for (const Instruction& i : instructions)
            if (i.reads(0)) loads_input[i.segment] = loads_input[i.gives()] = true;  // a norm observes before it gives
    }

    void place() {
        for (Register& r : registers) {
            i64& room = r.kept ? kept : values;
            r.value = room, room += r.size();
            i64& grad_room = r.crosses ? crossing : grads;
            r.grad = grad_room, grad_room += r.size();
        }
        for (Instruction& i : instructions)
            if (i.op == GROUP_NORM || i.op == NORMALISE) i.stats = stats, stats += 2 * i.groups;
    }

    Backward plan(bool wants_input, bool wants_output, bool given) const {
        Backward b;
        std::vector<bool> written(registers.size()), needed(registers.size()), rerun(instructions.size());
        written[output] = true, needed[output] = wants_output;
        for (i64 n = instructions.size() - 1; n >= 0; --n) {
            const Instruction& i = instructions[n];
            if (!written[i.to] || !(registers[i.to].trained || wants_input)) continue;
            BackwardStep step{n, {}, {}};
            for (int s = 0; s < i.sources(); ++s) {
                const i64 r = s ? i.other : i.from;
                step.want[s] = registers[r].trained || wants_input, step.add[s] = written[r];
                if (step.want[s]) written[r] = true;
            }
            b.steps.push_back(step);
            rerun[n] = i.op == GROUP_NORM || i.op == NORMALISE;
            const Reread again = reread_by(i.op, i.rectify, given);
            if (again.from) needed[i.from] = true;
            if (again.other) needed[i.other] = true;
            if (again.to) needed[i.to] = true;
        }
        for (i64 n = instructions.size() - 1; n >= 0; --n) {
            const Instruction& i = instructions[n];
            rerun[n] = rerun[n] || (needed[i.to] && !registers[i.to].kept);
            if (!rerun[n]) continue;
            if (i.sources()) needed[i.from] = true;
            if (i.reads_two()) needed[i.other] = true;
        }
        for (i64 n = 0; n < static_cast<i64>(instructions.size()); ++n)
            if (rerun[n]) b.again.push_back(n);
        b.loads_input.assign(segments, false);
        const auto consider = [&](const Instruction& i) {
            if (i.reads(0)) b.loads_input[i.segment] = b.loads_input[i.gives()] = true;
        };
        for (i64 n : b.again) consider(instructions[n]);
        for (const BackwardStep& step : b.steps) consider(instructions[step.instruction]);
        return b;
    }
};

}  // namespace esper
