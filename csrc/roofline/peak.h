// Instructions whose throughput is measured from registers.
#pragma once
#include <cstdint>

#include "gossamer/isa.h"

namespace gossamer {

struct Peak {
    const char* instruction;
    double ops_per_call;  // a multiply-add is two
    void (*run)(int64_t calls);
};

struct PeakKernels {
    Isa isa;
    Peak peaks[2];  // the second without an instruction where the ISA brings one
};

}  // namespace gossamer
