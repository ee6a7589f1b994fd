// Writes region programs for tests: steps with random parameters, and the panels they need.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"
#include "region/call.h"

namespace octavo {

/// 64-byte aligned memory of a panel or of constants.
class AlignedBytes {
 public:
  explicit AlignedBytes(int64_t count)
      : memory_(static_cast<char*>(
            ::operator new (static_cast<size_t>(count + 1), std::align_val_t{64}))),
        count_(count) {}
  char* data() const { return memory_.get(); }
  int64_t count() const { return count_; }

 private:
  struct Free {
    void operator()(char* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  std::unique_ptr<char, Free> memory_;
  int64_t count_;
};

inline std::string hex(double v) {
  char text[64];
  std::snprintf(text, sizeof(text), "%a", v);
  return text;
}

class RegionBuilder {
 public:
  explicit RegionBuilder(uint64_t seed) : random(seed) {}

  std::mt19937_64 random;
  std::string text = "octavo.region 1\n";
  int next = 0;

  int64_t pick(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  }
  float real(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(random);
  }

  /// Appends "<id> = <rest>" and returns the id.
  int step(const std::string& rest) {
    text += std::to_string(next) + " = " + rest + "\n";
    return next++;
  }
  void out(int id) { text += "out " + std::to_string(id) + "\n"; }

  /// " s= z= max=" of a value of about unit size; zero points at both ends and in between.
  std::string params() {
    const int64_t z = pick(0, 3) == 0 ? (pick(0, 1) != 0 ? 0 : 255) : pick(0, 255);
    return " s=" + hex(real(0.005f, 0.03f)) + " z=" + std::to_string(z) + " max=255";
  }
  std::string clamp() { return pick(0, 2) == 0 ? " lo=17 hi=201" : " lo=0 hi=255"; }

  /// Panel index of a random weight.
  int weight(int64_t out, int64_t in, int64_t groups, int64_t kh, int64_t kw) {
    const WeightShape shape{out, in, groups, kh, kw, 8};
    std::vector<int8_t> codes(static_cast<size_t>(out * (in / groups) * kh * kw));
    for (int8_t& code : codes) code = static_cast<int8_t>(pick(-128, 127));
    std::vector<float> scale(static_cast<size_t>(out)), bias(static_cast<size_t>(out));
    const float size = 1.0f / (64.0f * std::sqrt(static_cast<float>(in / groups * kh * kw)));
    for (float& s : scale) s = real(0.5f * size, size);
    for (float& b : bias) b = real(-0.5f, 0.5f);
    const PanelHeader header = panel_header(shape);
    AlignedBytes bytes(header.total_bytes);
    pack_panel(header, codes.data(), scale.data(), bias.data(), bytes.data());
    return keep(std::move(bytes), RegionPanel::Type::kBytes, 1);
  }
  int byte_table(int64_t count) {
    AlignedBytes bytes(count);
    for (int64_t i = 0; i < count; ++i) bytes.data()[i] = static_cast<char>(pick(0, 255));
    return keep(std::move(bytes), RegionPanel::Type::kBytes, 1);
  }
  int floats(int64_t count) {
    AlignedBytes bytes(4 * count);
    for (int64_t i = 0; i < count; ++i) {
      const float v = real(-1.0f, 1.0f);
      std::memcpy(bytes.data() + 4 * i, &v, 4);
    }
    return keep(std::move(bytes), RegionPanel::Type::kFloats, 4);
  }
  int channels(const std::vector<int32_t>& index) {
    AlignedBytes bytes(4 * static_cast<int64_t>(index.size()));
    std::memcpy(bytes.data(), index.data(), 4 * index.size());
    return keep(std::move(bytes), RegionPanel::Type::kInts, 4);
  }

  std::vector<RegionPanel> panels() const { return panels_; }

 private:
  int keep(AlignedBytes bytes, RegionPanel::Type type, int64_t element) {
    panels_.push_back({bytes.data(), bytes.count() / element, type});
    memory_.push_back(std::move(bytes));
    return static_cast<int>(panels_.size()) - 1;
  }

  std::vector<RegionPanel> panels_;
  std::vector<AlignedBytes> memory_;
};

}  // namespace octavo
