// The emulation of AMX tiles against Intel's description of the instructions: what makes the
// amx_emulated row of the other tests a proof about amx_int8. Includes the tile header's emulated
// half directly.
#define OCTAVO_AMX_EMULATED
#include <sys/wait.h>

#include "isa/amx_int8/tile.h"
#include "panel.h"
#include "product_test.h"

namespace octavo::OCTAVO_AMX {
namespace {

using testing::Random;

TileConfig config_of(int rows, int k_bytes, int columns) {
  TileConfig config{};
  config.palette = 1;
  const auto set = [&](int t, int tile_rows, int bytes) {
    config.rows[t] = static_cast<uint8_t>(tile_rows);
    config.bytes[t] = static_cast<uint16_t>(bytes);
  };
  set(0, rows, 4 * columns);
  set(4, rows, k_bytes);
  set(6, k_bytes / 4, 4 * columns);
  return config;
}

TEST(AmxEmulation, MultipliesUnsignedBySignedModulo2To32) {
  Random random(61);
  for (int i = 0; i < 300; ++i) {
    const int rows = static_cast<int>(random.in(1, 16));
    const int k = static_cast<int>(4 * random.in(1, 16));
    const int columns = static_cast<int>(random.in(1, 16));
    uint8_t a[16][100];
    int8_t b[64][16], packed[1024] = {};
    for (auto& row : a) {
      for (auto& code : row) code = random.code();
    }
    for (int row = 0; row < k; ++row) {
      for (int column = 0; column < 16; ++column) {
        b[row][column] = static_cast<int8_t>(random.code());
        packed[panel_offset(PanelLayout::kAmx, 16, 64, row, column)] = b[row][column];
      }
    }
    int32_t start[16];
    for (auto& s : start) s = random.below(2) == 0 ? 2147483600 : -2147483600;
    TilePiece result;
    std::memset(&result, 0x5a, sizeof result);

    tile_configure(config_of(rows, k, columns));
    tile_zero<0>();
    tile_load<0>(start, 0);
    tile_load<4>(a, sizeof a[0]);
    tile_load<6>(packed, 64);
    tile_multiply<0, 4, 6>();
    tile_multiply<0, 4, 6>();
    tile_store<0>(result);
    tile_release();

    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) {
        int64_t sum = start[n];
        for (int j = 0; j < k; ++j) sum += 2 * int64_t{a[m][j]} * int64_t{b[j][n]};
        const int32_t expected =
            m < rows && n < columns ? static_cast<int32_t>(static_cast<uint32_t>(sum)) : 0x5a5a5a5a;
        ASSERT_EQ(result.row[m][n], expected) << "row " << m << " column " << n;
      }
    }
  }
}

TEST(AmxEmulation, RowsBeyondTheConfigurationAreZero) {
  const std::vector<uint8_t> ones(1024, 1);
  tile_configure(config_of(3, 64, 16));
  std::memset(tiles.data[0], 0xff, sizeof tiles.data[0]);
  tile_load<0>(ones.data(), 64);
  EXPECT_EQ(tiles.data[0][2][63], 1);
  EXPECT_EQ(tiles.data[0][3][0], 0);
  tile_release();
}

TEST(AmxEmulation, ConfiguringClearsTiles) {
  tile_configure(config_of(16, 64, 16));
  std::memset(tiles.data, 0xff, sizeof tiles.data);
  tile_configure(config_of(16, 64, 16));
  for (const auto& tile : tiles.data) EXPECT_EQ(tile[0][0], 0);
  tile_release();
}

void load_without_configuration() {
  const std::vector<uint8_t> memory(1024, 0);
  tile_load<0>(memory.data(), 64);
}

void load_tile_that_is_left_out() {
  const std::vector<uint8_t> memory(1024, 0);
  tile_configure(config_of(16, 64, 16));
  tile_load<1>(memory.data(), 64);
}

void multiply_with_rows_of(int tile, int rows) {
  TileConfig config = config_of(16, 64, 16);
  config.rows[tile] = static_cast<uint8_t>(rows);
  tile_configure(config);
  tile_multiply<0, 4, 6>();
}

void configure_palette_2() {
  TileConfig config = config_of(16, 64, 16);
  config.palette = 2;
  tile_configure(config);
}

/// Uses that raise an invalid-opcode or general-protection fault on a processor.
TEST(AmxEmulationDeathTest, TrapsWhereTheProcessorFaults) {
  const auto trapped = [](int status) { return WIFSIGNALED(status); };
  EXPECT_EXIT(load_without_configuration(), trapped, "");
  EXPECT_EXIT(load_tile_that_is_left_out(), trapped, "");
  EXPECT_EXIT(multiply_with_rows_of(4, 15), trapped, "") << "rows of C and A differ";
  EXPECT_EXIT(multiply_with_rows_of(6, 15), trapped, "") << "K of A and B differ";
  EXPECT_EXIT(multiply_with_rows_of(0, 17), trapped, "") << "more than 16 rows";
  EXPECT_EXIT(configure_palette_2(), trapped, "");
}

}  // namespace
}  // namespace octavo::OCTAVO_AMX
