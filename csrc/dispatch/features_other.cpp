// Architectures without kernels of their own yet: scalar only.
#include "features.h"

namespace gossamer {

CpuFeatures detect_features() {
    CpuFeatures f;
    f.has[static_cast<size_t>(Isa::scalar)] = true;
    f.processor = "not x86-64";
    f.amx_status = "not in this processor";
    return f;
}

}  // namespace gossamer
