// Rows of the kinds of step say what the driver needs, and each has a reference.
#include <gtest/gtest.h>

#include <set>
#include <sstream>
#include <string>

#include "region/reference.h"
#include "region/step_row.h"

namespace octavo {
namespace {

std::set<std::string> keys_of(const StepRow& row) {
  std::istringstream words(row.keys);
  std::set<std::string> keys;
  for (std::string word; words >> word;) {
    keys.insert(word.front() == '[' ? word.substr(1, word.size() - 2) : word);
  }
  return keys;
}

TEST(RegionSteps, RowsAreComplete) {
  EXPECT_GT(step_rows().size(), 20u);
  for (const StepRow* row : step_rows()) {
    SCOPED_TRACE(row->name);
    const std::set<std::string> keys = keys_of(*row);
    const bool reads = keys.count("x") != 0;
    EXPECT_EQ(find_step(row->name), row);
    EXPECT_NE(reads, keys.count("in") != 0);
    EXPECT_TRUE(reads || row->shape != nullptr);
    EXPECT_EQ(row->check_panel != nullptr, keys.count("panel") != 0);
    EXPECT_EQ(row->constants_bytes != nullptr, row->write_constants != nullptr);
    const bool floats = row->defines_type == ValueType::kFloats;
    EXPECT_EQ(row->write != nullptr, floats);
    EXPECT_EQ(row->run != nullptr, !floats);
    EXPECT_EQ(row->passes_params, reads && !floats && keys.count("s") == 0);
    for (const std::string& key : keys) EXPECT_EQ(find_key(*row, key).name, key);
    for (const Key& key : row->own_keys) EXPECT_EQ(keys.count(key.name), 1u) << key.name;
    EXPECT_NE(Reference::of(row->name), nullptr);
  }
}

}  // namespace
}  // namespace octavo
