// What tests of region calls share: random inputs, one call on every instruction set, comparison
// with the reference.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "element_test.h"
#include "region/builder.h"
#include "region/call.h"

namespace octavo {

enum class Order { kContiguous, kChannelsLast, kSliced };

/// A random float tensor of any memory order.
struct Input {
  std::vector<float> memory;
  RegionInput view;

  Input(RegionBuilder& b, const std::vector<int64_t>& sizes, Order order);
};

/// Result `which` of a program.
std::vector<float> run_region(const RegionBuilder& b, const std::vector<RegionInput>& inputs,
                              size_t which);

/// Every result has the reference's bits.
void expect_as_reference(const RegionBuilder& b, const std::vector<RegionInput>& inputs);

/// Runs for every ISA of the machine, and leaves the number of threads as it was.
class RegionTest : public testing::IsaTest {
 protected:
  void SetUp() override;
  void TearDown() override;

 private:
  int threads_ = 1;
};

/// " panel=<index>" and " x=<id>".
std::string panel(int index);
std::string x(int id);

}  // namespace octavo
