// The image as a lane reads it: quantized, widened, or as it is.
#pragma once
#include <cstdint>
#include <vector>

#include "gossamer/conv.h"

namespace gossamer {

struct Image {
    const uint8_t* data;  // NHWC
    const uint8_t* end;
    int64_t element_bytes;
    uint8_t zero;               // the byte that stands for zero
    std::vector<float> scales;  // s8: [batch]
};

// In memory of this thread, which its next call reuses.
Image make_image(const ConvCall& call, Lane lane);

}  // namespace gossamer
