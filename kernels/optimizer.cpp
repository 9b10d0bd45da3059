// One optimizer step of many rows.

#include "optimizer.h"

namespace {

constexpr esper::i64 LEAST = 1 << 15;  // numbers worth a second thread

}  // namespace

extern "C" void esper_update(const void* arguments) {
    const auto& call = *static_cast<const esper::Update*>(arguments);
#pragma omp parallel for num_threads(call.threads) if (call.threads > 1 && call.rows * call.width > LEAST)
    for (esper::i64 row = 0; row < call.rows; ++row) esper::update_row(call, row, 0);
}
