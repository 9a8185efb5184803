// Every bf16 kernel that this machine runs, against fp64, on normal numbers; denormals apart.
#include "dispatch/lists.h"
#include "float_problem.h"

namespace gossamer::test {
namespace {

void test_denormals_count_as_zero() {
    for (const Bf16Kernels* kernel : bf16_list()) {
        if (!isa_available(kernel->isa)) continue;
        check(denormal_product<Bf16Block>(*kernel) == 0.0f, std::string(isa_name(kernel->isa)) + ": a denormal counts as zero");
    }
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    const auto list = gossamer::bf16_list();
    if (gossamer::find_kernels(list, gossamer::Isa::amx) == nullptr) return kSkipped;
    test_contract<gossamer::Bf16Block>(list);
    test_shapes<gossamer::Bf16Block>(list);
    test_short_panels<gossamer::Bf16Block>(list);
    test_short_groups<gossamer::Bf16Block>(list);
    test_special_values<gossamer::Bf16Block>(list);
    test_denormals_count_as_zero();
    return finish();
}
