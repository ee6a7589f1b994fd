// Parses region programs: a line names its kind, the kind's row lists the keys in order, each key
// has a reader (keys.h). Called by cache.cpp, constants.cpp and shapes.cpp.
#include "region/program.h"

#include <algorithm>

#include "region/keys.h"
#include "region/step_row.h"

namespace octavo {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view text) : program_(std::make_shared<Program>()) {
    program_->text = text;
    program_->hash = 1469598103934665603u;  // FNV-1a
    for (const char c : text) {
      program_->hash = (program_->hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
    }
  }

  std::shared_ptr<const Program> run() {
    std::string_view rest = program_->text;
    size_t number = 0;
    while (!rest.empty()) {
      ++number;
      if (rest.find('\n') == std::string_view::npos) {
        Line(rest, number, 0).fail("a newline after every line", rest);
      }
      const std::string_view text = take(&rest, '\n');
      const Line line(text, number, program_->steps.size());
      if (number == 1) {
        if (text != "octavo.region 1") line.fail("'octavo.region 1'");
      } else if (text.substr(0, 4) == "out ") {
        read_output(line, text.substr(4));
      } else {
        read_step(line, text);
      }
    }
    if (program_->outputs.empty()) {
      throw RegionError("region program: expected at least one 'out' line, got none.");
    }
    return program_;
  }

 private:
  void read_output(const Line& line, std::string_view text) {
    const int id = line.value(text);
    if (program_->steps[static_cast<size_t>(id)].type == ValueType::kDynamicCodes) {
      line.fail("a value that can leave the region", text);
    }
    program_->outputs.push_back(id);
  }

  void read_step(const Line& line, std::string_view rest) {
    if (!program_->outputs.empty()) line.fail("'out' lines only after the first 'out'");
    if (program_->steps.size() >= static_cast<size_t>(kMaxSteps)) line.fail("at most 65536 steps");
    const std::string_view id = take(&rest, ' ');
    if (id != std::to_string(program_->steps.size())) {
      line.fail("'" + std::to_string(program_->steps.size()) + " = <kind> ...'");
    }
    if (take(&rest, ' ') != "=") line.fail("'=' after the id");
    const std::string_view name = take(&rest, ' ');
    const StepRow* row = find_step(name);
    if (row == nullptr) line.fail("a kind of step", name);

    Step step{};
    step.row = row;
    std::string_view keys = row->keys;
    while (keys.data() != nullptr) {
      std::string_view key = take(&keys, ' ');
      if (key.front() == '[') {
        if (rest.data() == nullptr) break;
        key = key.substr(1, key.size() - 2);
      }
      if (rest.data() == nullptr) line.fail("the key '" + std::string(key) + "'");
      std::string_view pair = take(&rest, ' ');
      const std::string_view written = take(&pair, '=');
      if (written != key) line.fail("the key '" + std::string(key) + "'", written);
      find_key(*row, key).read(line, pair, &step);
    }
    if (rest.data() != nullptr) line.fail("the end of the line", rest);
    program_->input_count = std::max(program_->input_count, step.input + 1);
    program_->panel_count = std::max(program_->panel_count, step.panel + 1);
    finish(line, &step);
    program_->steps.push_back(std::move(step));
  }

  /// Everything about a step that takes more than one key to check, and what its value inherits.
  void finish(const Line& line, Step* step) const {
    const StepRow& row = *step->row;
    step->type = row.defines_type;
    if (!step->x.empty()) {
      const Step& source = program_->steps[static_cast<size_t>(step->x[0])];
      for (const int id : step->reads()) check_read(line, row, source, id);
      step->layout = row.defines == Layouts::kRows     ? ValueLayout::kRows
                     : row.defines == Layouts::kImages ? ValueLayout::kImage
                                                       : source.layout;
      if (row.passes_params) step->params = source.params;
    }
    if (step->type == ValueType::kCodes && !(step->lo >= 0.0f && step->hi <= 255.0f)) {
      line.fail("lo and hi in 0..255");
    }
    if (!(step->lo <= step->hi)) line.fail("lo <= hi");
    if (row.check != nullptr) row.check(line, *step);
  }

  void check_read(const Line& line, const StepRow& row, const Step& source, int id) const {
    const Step& read = program_->steps[static_cast<size_t>(id)];
    const std::string name = "value " + std::to_string(id);
    const bool is_rows = read.layout == ValueLayout::kRows;
    if (read.type != row.reads_type) line.fail(name + " to hold what this kind reads");
    if (read.layout != source.layout) line.fail(name + " in the layout of x");
    if (row.reads == Layouts::kRows && !is_rows) line.fail(name + " as rows");
    if (row.reads == Layouts::kImages && is_rows) line.fail(name + " as an image");
  }

  std::shared_ptr<Program> program_;
};

}  // namespace

std::vector<int> Step::reads() const {
  std::vector<int> values = x;
  if (y >= 0) values.push_back(y);
  if (residual >= 0) values.push_back(residual);
  return values;
}

void ProgramStep::fail(const std::string& expected, const std::string& got) const {
  throw RegionError("region step " + std::to_string(index_) + " (" + step().row->name +
                    "): expected " + expected + ", got " + got + ".");
}

void ProgramStep::fail_panel(const std::string& expected, const std::string& got) const {
  fail("panel " + std::to_string(step().panel) + " to be " + expected, got);
}

std::shared_ptr<const Program> parse_program(std::string_view text) { return Parser(text).run(); }

}  // namespace octavo
