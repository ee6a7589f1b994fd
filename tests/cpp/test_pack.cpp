// Panels and bit streams: round trips, over-long and damaged headers, padding, on every ISA of this
// machine.
#include "product_test.h"

namespace octavo::testing {
namespace {

class Pack : public IsaTest {};
OCTAVO_FOR_EVERY_ISA(Pack);

std::vector<WeightShape> shapes() {
  std::vector<WeightShape> list;
  for (const int64_t out : {1, 15, 16, 17, 33, 64, 65, 130}) {
    for (const int64_t in : {1, 3, 4, 5, 64, 67}) {
      list.push_back({out, in, 1, 1, 1, 8});
      list.push_back({out, in, 1, 3, 2, 8});
    }
  }
  list.push_back({64, 3, 1, 7, 7, 8});
  for (const int64_t groups : {2, 3, 8, 32}) {
    list.push_back({groups * 4, groups * 4, groups, 3, 3, 8});
    list.push_back({groups * 2, groups, groups, 3, 3, 8});
    list.push_back({groups * 17, groups * 5, groups, 1, 3, 7});
  }
  for (const int64_t channels : {2, 63, 64, 65, 130})
    list.push_back({channels, channels, channels, 5, 3, 8});
  list.push_back({0, 4, 1, 3, 3, 8});
  list.push_back({4, 0, 1, 3, 3, 8});
  return list;
}

TEST_P(Pack, UnpackGivesTheCodesBack) {
  Random random(51);
  for (const WeightShape& shape : shapes()) {
    const Layer layer(shape, random);
    Packed panel(layer);
    EXPECT_EQ(check_panel(panel.data(), panel.size()), PanelCheck::kOk);
    std::vector<int8_t> codes(layer.codes.size(), 99);
    unpack_panel(panel.data(), codes.data());
    EXPECT_EQ(codes, layer.codes);
  }
}

TEST_P(Pack, SectionsHoldSumsScalesAndBias) {
  Random random(52);
  for (const WeightShape& shape : shapes()) {
    const Layer layer(shape, random);
    Packed panel(layer);
    PanelHeader header;
    std::memcpy(&header, panel.data(), sizeof header);
    for (int64_t o = 0; o < shape.out_channels; ++o) {
      int32_t sum;
      float scale, bias;
      std::memcpy(&sum, panel.bytes() + header.colsum_offset + 4 * o, 4);
      std::memcpy(&scale, panel.bytes() + header.scale_offset + 4 * o, 4);
      std::memcpy(&bias, panel.bytes() + header.bias_offset + 4 * o, 4);
      EXPECT_EQ(sum, layer.column_sum(o));
      EXPECT_EQ(scale, layer.scale[o]);
      EXPECT_EQ(bias, layer.bias[o]);
    }
    for (const int64_t offset :
         {header.weight_offset, header.colsum_offset, header.scale_offset, header.bias_offset}) {
      EXPECT_EQ(offset % 64, 0);
    }
  }
}

TEST_P(Pack, MissingBiasIsZero) {
  Random random(53);
  const Layer layer({5, 6, 1, 1, 1, 8}, random);
  Packed panel(layer);
  pack_panel(panel_header(layer.shape), layer.codes.data(), layer.scale.data(), nullptr,
             panel.bytes());
  PanelHeader header;
  std::memcpy(&header, panel.data(), sizeof header);
  for (int64_t o = 0; o < 5; ++o) {
    float bias;
    std::memcpy(&bias, panel.bytes() + header.bias_offset + 4 * o, 4);
    EXPECT_EQ(bias, 0.0f);
  }
}

TEST_P(Pack, PanelsOfOtherIsasUnpackHere) {
  Random random(54);
  const Layer layer({70, 9, 1, 3, 3, 8}, random);
  Packed panel(layer);
  for (const std::string& other : available_isas()) {
    ASSERT_EQ(set_isa(other.c_str()), SetIsa::kOk);
    EXPECT_EQ(check_panel(panel.data(), panel.size()), PanelCheck::kOk);
    std::vector<int8_t> codes(layer.codes.size());
    unpack_panel(panel.data(), codes.data());
    EXPECT_EQ(codes, layer.codes) << GetParam() << " on " << other;
  }
}

/// A damaged header is refused, or describes another layer whose panel is just as large (20 and 22
/// channels have the same padding): reading it stays inside.
TEST_P(Pack, EveryDamagedHeaderBitIsSafe) {
  Random random(55);
  const Layer layer({20, 6, 2, 3, 3, 8}, random);
  Packed panel(layer);
  const std::vector<uint8_t> good(panel.bytes(), panel.bytes() + panel.size());
  int refused = 0;
  for (size_t bit = 0; bit < 8 * sizeof(PanelHeader); ++bit) {
    panel.bytes()[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
    if (check_panel(panel.data(), panel.size()) == PanelCheck::kMalformed) {
      ++refused;
    } else {
      PanelHeader h;
      std::memcpy(&h, panel.data(), sizeof h);
      EXPECT_LE(h.total_bytes, panel.size()) << "bit " << bit;
      std::vector<int8_t> codes(static_cast<size_t>(h.out_channels * (h.in_channels / h.groups) *
                                                    h.kernel_h * h.kernel_w));
      unpack_panel(panel.data(), codes.data());
    }
    std::memcpy(panel.bytes(), good.data(), good.size());
  }
  EXPECT_GT(refused, 800);
}

TEST_P(Pack, ShortOrHostilePanelsAreRefused) {
  Random random(56);
  // Channels for more than one padded run unit of any layout, so that each field below changes a
  // size.
  const Layer layer({20, 70, 1, 3, 3, 8}, random);
  Packed panel(layer);
  for (int64_t bytes = 0; bytes < panel.size(); ++bytes) {
    ASSERT_EQ(check_panel(panel.data(), bytes), PanelCheck::kMalformed) << bytes;
  }
  PanelHeader header;
  std::memcpy(&header, panel.data(), sizeof header);
  const int64_t values[] = {INT64_MIN, -1, 0, 1, INT64_C(1) << 31, INT64_C(1) << 62, INT64_MAX};
  int64_t PanelHeader::*const fields[] = {
      &PanelHeader::out_channels,  &PanelHeader::in_channels,   &PanelHeader::groups,
      &PanelHeader::kernel_h,      &PanelHeader::kernel_w,      &PanelHeader::blocks,
      &PanelHeader::weight_offset, &PanelHeader::colsum_offset, &PanelHeader::scale_offset,
      &PanelHeader::bias_offset,   &PanelHeader::total_bytes};
  for (const auto field : fields) {
    for (const int64_t value : values) {
      PanelHeader bad = header;
      bad.*field = value;
      if (value == header.*field) continue;
      std::memcpy(panel.bytes(), &bad, sizeof bad);
      EXPECT_EQ(check_panel(panel.data(), panel.size()), PanelCheck::kMalformed);
    }
  }
}

TEST_P(Pack, ImpossibleShapesHaveNoPanel) {
  EXPECT_EQ(panel_header({INT64_C(1) << 40, INT64_C(1) << 40, 1, 7, 7, 8}).total_bytes, -1);
  EXPECT_EQ(panel_header({INT64_MAX, 0, 1, 1, 1, 8}).total_bytes, -1);
  EXPECT_EQ(panel_header({0, 0, INT64_MAX, 1, 1, 8}).total_bytes, -1);
  EXPECT_EQ(panel_header({4, 5, 2, 1, 1, 8}).total_bytes, -1);
}

TEST(PackBits, AllCodesOfAllWidthsAndLengths) {
  Random random(57);
  for (int32_t bits = 2; bits <= 8; ++bits) {
    for (int64_t length = 0; length <= 512; ++length) {
      const int64_t channels = 1 + length % 3;
      const int32_t smallest = -(1 << (bits - 1));
      std::vector<int8_t> codes(static_cast<size_t>(channels * length));
      for (size_t i = 0; i < codes.size(); ++i) {
        codes[i] = static_cast<int8_t>(smallest + static_cast<int32_t>((i + bits) % (1u << bits)));
      }
      const int64_t row = packed_row_bytes(length, bits);
      ASSERT_EQ(row, (length * bits + 7) / 8);
      Guarded<uint8_t> packed(channels * row);
      pack_bits(codes.data(), channels, length, bits, packed.data());
      std::vector<int8_t> back(codes.size(), 99);
      unpack_bits(packed.data(), channels, length, bits, back.data());
      ASSERT_EQ(back, codes) << bits << " bits, length " << length;
    }
  }
}

TEST(PackBits, StreamIsLeastSignificantBitFirst) {
  const int8_t codes[] = {1, -1, -4, 3, 0, 2};  // 001 111 100 011 000 010
  uint8_t packed[3];
  pack_bits(codes, 1, 6, 3, packed);
  EXPECT_EQ(packed[0], 0b00111001);  // low to high: 001, 111, 00 of 100
  EXPECT_EQ(packed[1], 0b00000111);  // 1 of 100, 011, 000, 0 of 010
  EXPECT_EQ(packed[2], 0b00000001);
  EXPECT_EQ(packed_row_bytes(6, 3), 3);
}

TEST_P(Pack, GroupsOfFewChannelsAreNoLargerThanInVnniForm) {
  // 13 groups of 8 to 8 channels: nine runs of 8 codes for 16 columns each, and 3 x 416 + 128
  // bytes.
  EXPECT_LE(panel_header({104, 104, 13, 3, 3, 8}).total_bytes, 13 * 9 * 8 * 16 + 3 * 448 + 128);
  // Wide groups keep the instruction set's own form: tiles of 64 inputs.
  const int64_t wide = panel_header({128, 128, 2, 3, 3, 8}).total_bytes;
  EXPECT_LE(wide, 2 * 9 * 64 * 64 + 3 * 512 + 128);
}

}  // namespace
}  // namespace octavo::testing
