// Every f32 kernel that this machine runs, against fp64.
#include "dispatch/lists.h"
#include "float_problem.h"

namespace gossamer::test {
namespace {

void test_denormals_are_kept() {
    for (const F32Kernels* kernel : f32_list()) {
        if (!isa_available(kernel->isa)) continue;
        check(denormal_product<F32Block>(*kernel) == 0x1p-133f, std::string(isa_name(kernel->isa)) + ": a denormal stays");
    }
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    const auto list = gossamer::f32_list();
    test_contract<gossamer::F32Block>(list);
    test_shapes<gossamer::F32Block>(list);
    test_short_panels<gossamer::F32Block>(list);
    test_short_groups<gossamer::F32Block>(list);
    test_special_values<gossamer::F32Block>(list);
    test_denormals_are_kept();
    return finish();
}
