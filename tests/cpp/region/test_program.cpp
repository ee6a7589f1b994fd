// Region programs, panels and constants from strangers: each is refused in words, or runs; none
// crashes.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels.h"
#include "region/builder.h"
#include "region/call.h"

namespace octavo {
namespace {

constexpr const char* kValid =
    "octavo.region 1\n"
    "0 = quantize in=0 layout=image s=0x1.4p-6 z=114 max=255\n"
    "1 = conv x=0 panel=0 channels=8 kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1 s=0x1.9p-5 z=0 "
    "max=255 lo=0 hi=255\n"
    "2 = max_pool x=1 kernel=3,3 stride=2,2 pad=1,1,1,1 dilation=1,1 ceil=0\n"
    "3 = concat x=2,2 s=0x1.9p-5 z=0 max=255\n"
    "4 = upsample_nearest x=3 size=0,0 scale=0x1p1,0x1p1\n"
    "5 = slice x=4 h=0,-1,2 w=1,5,1\n"
    "6 = pad x=5 pad=1,0,1,0 mode=replicate value=0\n"
    "7 = adaptive_avg_pool x=6 size=1,1 s=0x1.9p-5 z=3 max=255\n"
    "8 = flatten x=7\n"
    "9 = linear_f32 x=8 panel=1 channels=5 lo=-inf hi=inf\n"
    "out 9\n"
    "out 6\n";

std::string message_of(const std::string& text) {
  try {
    parse_program(text);
  } catch (const RegionError& error) {
    return error.what();
  }
  return "";
}

std::string replaced(const std::string& from, const std::string& to) {
  std::string text = kValid;
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(RegionProgram, ValidOneParses) {
  const auto program = parse_program(kValid);
  EXPECT_EQ(program->steps.size(), 10u);
  EXPECT_EQ(program->outputs, (std::vector<int>{9, 6}));
  EXPECT_EQ(program->input_count, 1);
  EXPECT_EQ(program->panel_count, 2);
  EXPECT_EQ(program->steps[0].params.scale, 0x1.4p-6f);
  EXPECT_EQ(program->steps[2].params.scale, 0x1.9p-5f);  // passed on
  EXPECT_EQ(program->steps[9].lo, -INFINITY);
}

TEST(RegionProgram, RefusesMalformedText) {
  const struct {
    std::string text, message;
  } kCases[] = {
      {"", "at least one 'out'"},
      {"octavo.region 2\n", "line 1: expected 'octavo.region 1'"},
      {"octavo.region 1", "a newline after every line"},
      {"octavo.region 1\nout 0\n", "a step before the first use"},
      {replaced("out 9\nout 6\n", ""), "at least one 'out'"},
      {replaced("out 6", "out 10"), "integer in 0..9, got '10'"},
      {replaced("out 6", "out 06"), "integer in 0..9, got '06'"},
      {replaced("out 6", "out -0"), "integer in 0..9"},
      {replaced("out 9\n", "out 9\n10 = flatten x=7\n"), "only after the first 'out'"},
      {replaced("1 = conv", "2 = conv"), "line 3: expected '1 = <kind>"},
      {replaced("1 = conv", "1  = conv"), "'=' after the id"},
      {replaced("conv x=0", "convolve x=0"), "a kind of step, got 'convolve'"},
      {replaced("x=0 panel=0", "panel=0 x=0"), "the key 'x', got 'panel'"},
      {replaced("x=0 panel=0", "x=1 panel=0"), "integer in 0..0, got '1'"},
      {replaced("kernel=3,3 stride=1,1", "kernel=0,3 stride=1,1"),
       "integer in 1..2147483648, got '0'"},
      {replaced("kernel=3,3 stride=1,1", "kernel=3 stride=1,1"), "2 integers, got '3'"},
      {replaced("kernel=3,3 stride=1,1", "kernel=3,3,3 stride=1,1"), "2 integers"},
      {replaced("stride=1,1", "stride=1,99999999999999999999"), "integer in"},
      {replaced("pad=1,1,1,1", "pad=1,1,-1,1"), "integer in 0.."},
      {replaced("s=0x1.4p-6", "s=0"), "a normal float32 > 0, got '0'"},
      {replaced("s=0x1.4p-6", "s=-0x1p0"), "a normal float32 > 0"},
      {replaced("s=0x1.4p-6", "s=nan"), "a number"},
      {replaced("s=0x1.4p-6", "s=inf"), "a normal float32 > 0"},
      {replaced("s=0x1.4p-6", "s=0x1p-140"), "a normal float32 > 0"},
      {replaced("s=0x1.4p-6", "s="), "a number"},
      {replaced("s=0x1.4p-6", "s=0x"), "a number"},
      {replaced("s=0x1.4p-6", "s=--1"), "a number"},
      {replaced("z=114 max=255", "z=256 max=255"), "integer in 0..255, got '256'"},
      {replaced("z=114 max=255", "z=114 max=100"), "integer in 114..255, got '100'"},
      {replaced("lo=0 hi=255", "lo=-1 hi=255"), "lo and hi in 0..255"},
      {replaced("lo=0 hi=255", "lo=9 hi=8"), "lo <= hi"},
      {replaced("lo=0 hi=255", "lo=0 hi=inf"), "lo and hi in 0..255"},
      {replaced("lo=0 hi=255\n", "lo=0\n"), "the key 'hi'"},
      {replaced("lo=0 hi=255\n", "lo=0 hi=255 \n"), "the key 'r'"},
      {replaced("lo=0 hi=255\n", "lo=0 hi=255 r=0 r=0\n"), "the end of the line"},
      {replaced("ceil=0", "ceil=2"), "integer in 0..1"},
      {replaced("pad=1,1,1,1 dilation=1,1 ceil", "pad=2,1,1,1 dilation=1,1 ceil"),
       "half the window"},
      {replaced("layout=image", "layout=picture"), "image, image1d or rows, got 'picture'"},
      {replaced("mode=replicate", "mode=zero"), "constant, reflect, replicate or circular"},
      {replaced("value=0", "value=inf"), "a finite value"},
      {replaced("h=0,-1,2", "h=0,-1,0"), "step >= 1"},
      {replaced("scale=0x1p1,0x1p1", "scale=0x1p1"), "2 numbers"},
      {replaced("scale=0x1p1,0x1p1", "scale=-0x1p1,0x1p1"), "numbers in 0..65536"},
      {replaced("concat x=2,2", "concat x=2,"), "integer in"},
      {replaced("8 = flatten x=7", "8 = to_image x=7"), "value 7 as rows"},
      {replaced("linear_f32 x=8", "linear_f32 x=7"), "value 7 as rows"},
      {replaced("out 9\n", "out 9\n\n"), "'out' lines only"},
      {replaced("7 = adaptive_avg_pool x=6", "7 = adaptive_avg_pool x=6\x01"), "got '6?'"},
  };
  for (const auto& c : kCases) {
    const std::string message = message_of(c.text);
    EXPECT_NE(message.find(c.message), std::string::npos)
        << "expected '" << c.message << "' in '" << message << "'";
  }
}

TEST(RegionProgram, RefusesReadingFloats) {
  const std::string text =
      replaced("out 9\n", "10 = linear_f32 x=9 panel=1 channels=5 lo=0 hi=1\nout 9\n");
  EXPECT_NE(message_of(text).find("value 9 to hold what this kind reads"), std::string::npos);
}

/// The valid program with panels, ready to be damaged.
struct Fixture {
  RegionBuilder b{7};
  std::vector<float> memory;
  RegionInput input;
  std::vector<RegionPanel> panels;

  Fixture() : memory(2 * 3 * 6 * 6, 0.5f) {
    b.text = kValid;
    b.weight(8, 3, 1, 3, 3);
    b.weight(5, 16, 1, 1, 1);
    input.sizes = {2, 3, 6, 6};
    input.strides = {108, 36, 6, 1};
    input.data = memory.data();
    panels = b.panels();
  }

  /// The message of constants and one whole run; "" where they succeed.
  std::string run(const std::string& text) {
    try {
      AlignedBytes constants(region_constants_bytes(text, panels));
      make_region_constants(text, panels, constants.data());
      return run_with(text, constants.data(), constants.count());
    } catch (const RegionError& error) {
      return error.what();
    }
  }

  std::string run_with(const std::string& text, const void* constants, int64_t bytes) {
    try {
      const std::vector<RegionInput> inputs{input};
      const RegionCall call(text, inputs, panels, constants, bytes);
      std::vector<std::vector<float>> results;
      std::vector<RegionOutput> outputs;
      for (size_t o = 0; o < call.output_count(); ++o) {
        const std::vector<int64_t> sizes = call.output_sizes(o);
        RegionOutput output;
        output.strides.resize(sizes.size());
        int64_t stride = 1;
        for (size_t d = sizes.size(); d-- > 0;) {
          output.strides[d] = stride;
          stride *= std::max<int64_t>(sizes[d], 1);
        }
        if (stride > (int64_t{1} << 24)) return "too large for a test";
        results.emplace_back(static_cast<size_t>(stride));
        output.data = results.back().data();
        outputs.push_back(output);
      }
      call.run(outputs);
    } catch (const RegionError& error) {
      return error.what();
    }
    return "";
  }
};

TEST(RegionCall, RefusesWhatDoesNotFit) {
  Fixture f;
  ASSERT_EQ(f.run(kValid), "");
  const auto expect = [&](const std::string& message, const std::string& part) {
    EXPECT_NE(message.find(part), std::string::npos)
        << "expected '" << part << "' in '" << message << "'";
  };
  expect(f.run(replaced("channels=8 kernel", "channels=9 kernel")), "of 9 channels, got 8");
  expect(f.run(replaced("kernel=3,3 stride=1,1", "kernel=1,3 stride=1,1")), "kernel 1x3, got");
  expect(f.run(replaced("panel=0 channels=8", "panel=1 channels=5")),
         "3 to 5 channels, kernel 3x3, got");
  expect(f.run(replaced("panel=1", "panel=2")), "expected 3 panels, got 2");
  expect(f.run(replaced("in=0", "in=1")), "expected 2 inputs, got 1");
  expect(f.run(replaced("layout=image s", "layout=image1d s")),
         "an input of 3 dimensions, got [2, 3, 6, 6]");
  expect(f.run(replaced("h=0,-1,2", "h=9,-1,2")), "continued by");

  const std::vector<RegionPanel> panels = f.panels;
  f.panels[0].count -= 64;
  expect(f.run(kValid), "to be a packed weight");
  f.panels = panels;
  f.panels[0].type = RegionPanel::Type::kFloats;
  expect(f.run(kValid), "to be a packed weight");
  f.panels = panels;
  std::swap(f.panels[0], f.panels[1]);
  expect(f.run(kValid), "to be of 8 channels, got 5");
  f.panels = panels;

  AlignedBytes constants(region_constants_bytes(kValid, panels));
  make_region_constants(kValid, panels, constants.data());
  EXPECT_EQ(f.run_with(kValid, constants.data(), constants.count()), "");
  expect(f.run_with(kValid, constants.data(), constants.count() - 64),
         "constants that region_constants made");
  expect(f.run_with(kValid, constants.data(), 0), "constants that region_constants made");
  expect(f.run_with(replaced("z=114", "z=113"), constants.data(), constants.count()), "got others");

  // Every bit of a panel's header: refused, whatever was seen before.
  char* header = static_cast<char*>(const_cast<void*>(panels[0].data));
  for (size_t bit = 0; bit < 8 * sizeof(PanelHeader); ++bit) {
    header[bit / 8] ^= static_cast<char>(1 << bit % 8);
    const std::string message = f.run_with(kValid, constants.data(), constants.count());
    header[bit / 8] ^= static_cast<char>(1 << bit % 8);
    // `bits` may change from one width to another without harm.
    if (bit / 8 < 12 || bit / 8 >= 16) {
      EXPECT_NE(message, "") << "bit " << bit;
    }
  }
  EXPECT_EQ(f.run_with(kValid, constants.data(), constants.count()), "");
}

/// Random damage: a RegionError or a run, under the sanitizers without a report.
TEST(RegionCall, SurvivesDamagedPrograms) {
  Fixture f;
  constexpr char kLetters[] = "0123456789,=.-xpinf \nsz";
  int refused = 0, ran = 0;
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    RegionBuilder dice(seed);
    std::string text = kValid;
    if (seed % 2 == 0) {  // another digit for one: often still a program
      size_t at = 0;
      do {
        at = static_cast<size_t>(dice.pick(16, static_cast<int64_t>(text.size()) - 1));
      } while (text[at] < '0' || text[at] > '9');
      text[at] = static_cast<char>('0' + dice.pick(0, 9));
    }
    for (int64_t edits = seed % 2 == 0 ? 0 : dice.pick(1, 3); edits > 0; --edits) {
      const auto at = static_cast<size_t>(dice.pick(0, static_cast<int64_t>(text.size()) - 1));
      const char letter = kLetters[dice.pick(0, sizeof(kLetters) - 2)];
      switch (dice.pick(0, 2)) {
        case 0:
          text[at] = letter;
          break;
        case 1:
          text.insert(at, 1, letter);
          break;
        default:
          text.erase(at, static_cast<size_t>(dice.pick(1, 8)));
          break;
      }
      if (text.empty()) text = "o";
    }
    std::string message;
    try {
      message = f.run(text);
    } catch (const std::bad_alloc&) {
      message = "no memory";
    }
    ++(message.empty() ? ran : refused);
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(ran, 100);
}

TEST(RegionCall, RefusesGathersOutOfRange) {
  RegionBuilder b(8);
  b.text +=
      "0 = quantize in=0 layout=rows s=0x1p-6 z=0 max=255\n"
      "1 = gather_channels x=0 panel=0\n"
      "out 1\n";
  b.channels({0, 4, 2});
  Fixture f;
  f.panels = b.panels();
  f.input.sizes = {2, 4};
  f.input.strides = {4, 1};
  EXPECT_NE(f.run(b.text).find("channels in -1..3, got 4"), std::string::npos);
}

TEST(RegionCall, RefusesUnboundedSizes) {
  Fixture f;
  f.panels = {};
  const auto text = [](const std::string& step) {
    return "octavo.region 1\n0 = quantize in=0 layout=image s=0x1p-6 z=0 max=255\n" + step +
           "\nout 1\n";
  };
  for (const char* step : {"1 = upsample_nearest x=0 size=2147483648,2147483648 scale=0,0",
                           "1 = adaptive_max_pool x=0 size=2147483648,2147483648",
                           "1 = pad x=0 pad=2147483648,2147483648,0,0 mode=constant value=0"}) {
    EXPECT_NE(f.run(text(step)).find("at most 2^48 elements"), std::string::npos) << step;
  }
}

}  // namespace
}  // namespace octavo
