// Inputs, calls and comparisons for tests of regions (region_test.h).
#include "region/region_test.h"

#include <omp.h>

#include <cmath>

#include "region/reference.h"

namespace octavo {

Input::Input(RegionBuilder& b, const std::vector<int64_t>& sizes, Order order) {
  view.sizes = sizes;
  view.strides.resize(sizes.size());
  std::vector<size_t> dims;
  for (size_t d = sizes.size(); d-- > 0;) dims.push_back(d);
  if (order == Order::kChannelsLast && sizes.size() == 4) dims = {1, 3, 2, 0};
  int64_t stride = order == Order::kSliced ? 2 : 1;
  for (const size_t d : dims) {
    view.strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  memory.resize(static_cast<size_t>(stride) + 1);
  for (float& v : memory) v = b.real(-2.0f, 2.0f);
  view.data = memory.data();
}

std::vector<float> run_region(const RegionBuilder& b, const std::vector<RegionInput>& inputs,
                              size_t which) {
  const std::vector<RegionPanel> panels = b.panels();
  AlignedBytes constants(region_constants_bytes(b.text, panels));
  make_region_constants(b.text, panels, constants.data());
  const RegionCall call(b.text, inputs, panels, constants.data(), constants.count());
  std::vector<RegionOutput> outputs;
  std::vector<std::vector<float>> memory;
  for (size_t o = 0; o < call.output_count(); ++o) {
    const std::vector<int64_t> sizes = call.output_sizes(o);
    RegionOutput output;
    output.strides.resize(sizes.size());
    int64_t stride = 1;
    for (size_t d = sizes.size(); d-- > 0;) {
      output.strides[d] = stride;
      stride *= std::max<int64_t>(sizes[d], 1);
    }
    int64_t count = 1;
    for (const int64_t size : sizes) count *= size;
    memory.emplace_back(static_cast<size_t>(count), NAN);
    output.data = memory.back().data();
    outputs.push_back(output);
  }
  call.run(outputs);
  call.run(outputs);  // a second run meets a used arena
  return memory[which];
}

void expect_as_reference(const RegionBuilder& b, const std::vector<RegionInput>& inputs) {
  const auto program = parse_program(b.text);
  const std::vector<RegionPanel> panels = b.panels();
  const RegionReference reference(*program, inputs, panels);
  for (size_t o = 0; o < program->outputs.size(); ++o) {
    const std::vector<float> expected = reference.output(o);
    const std::vector<float> got = run_region(b, inputs, o);
    ASSERT_EQ(got.size(), expected.size());
    size_t wrong = 0, first = 0;
    for (size_t i = got.size(); i-- > 0;) {
      if (std::memcmp(&got[i], &expected[i], sizeof(float)) != 0) ++wrong, first = i;
    }
    ASSERT_EQ(wrong, 0u) << "result " << o << ", first at " << first << ": got " << got[first]
                         << ", expected " << expected[first] << "\n"
                         << b.text;
  }
}

void RegionTest::SetUp() {
  threads_ = omp_get_max_threads();
  IsaTest::SetUp();
}

void RegionTest::TearDown() {
  IsaTest::TearDown();
  omp_set_num_threads(threads_);
}

std::string panel(int index) { return " panel=" + std::to_string(index); }
std::string x(int id) { return " x=" + std::to_string(id); }

}  // namespace octavo
