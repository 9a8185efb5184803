// Depthwise convolution of whole images.
#pragma once
#include <vector>

#include "gossamer/conv.h"

namespace gossamer {

// A weight [channels, taps] as [taps][channels rounded up to 16] fp32.
std::vector<float> depthwise_taps(const Weight& weight);

void conv2d_depthwise(const ConvCall& call);

}  // namespace gossamer
