// What an instruction asks of a layer: the sizes that follow from its registers.

#pragma once

#include "execute.h"
#include "neighbours.h"

namespace esper {

struct Operands {
    const Program& program;
    const Instruction& i;
    i64 size(i64 r) const { return program.registers[r].size(); }
    Conv conv() const {
        const Register& to = program.registers[i.to];
        const i64 in = size(i.from) / to.area();
        return {i.groups, in / i.groups, to.channels / i.groups, to.height, to.width, i.kernel};
    }
    Matrices matrices() const {
        return {i.groups, {size(i.from) / (i.groups * i.kernel), i.kernel, size(i.other) / (i.groups * i.kernel)}};
    }
    Linear linear() const {
        const i64 rows = size(i.from) / i.kernel;
        return {rows, i.kernel, size(i.to) / rows};
    }
    Pairs pairs() const {
        const i64 count = i.reads_two() ? size(i.other) : i.kernel;
        return {i.groups, count, size(i.to) / (i.groups * count)};
    }
    const i64* table() const { return program.tables.data() + i.constant; }
};

}  // namespace esper
