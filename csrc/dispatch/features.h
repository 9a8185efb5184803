// What the processor and the operating system offer; one implementation per architecture.
#pragma once
#include <array>
#include <string>

#include "gossamer/isa.h"

namespace gossamer {

struct CpuFeatures {
    std::array<bool, kIsaCount> has{};
    std::string processor;
    std::string amx_status;  // "available", or why not
};

CpuFeatures detect_features();

}  // namespace gossamer
