#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings.h"
#include "engine/choose.h"

namespace nb = nanobind;
using namespace nb::literals;
using edgellm::engine::Filter;
using edgellm::engine::SamplingPlan;

namespace {

template <typename T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr size_t kLarge = 100'000;  // tokens: what takes longer than the interpreter needs to change hands

Filter filter_of(std::string_view name, double value) {
  static constexpr std::array<std::pair<std::string_view, Filter>, 6> kNames{
      {{"top_n_sigma", Filter::top_n_sigma},
       {"top_k", Filter::top_k},
       {"typical_p", Filter::typical_p},
       {"top_p", Filter::top_p},
       {"min_p", Filter::min_p},
       {"xtc_threshold", Filter::xtc_threshold}}};
  for (const auto& [known, filter] : kNames) {
    if (known != name) continue;
    const double most = filter == Filter::top_k ? 1e9 : filter == Filter::top_n_sigma ? 1e300 : 1;
    if (!(value >= (filter == Filter::top_k ? 1 : 0) && value <= most)) break;
    return filter;
  }
  throw std::invalid_argument("no filter " + std::string(name) + " takes " + std::to_string(value));
}

int32_t choose(const Array<float>& row, const nb::tuple& shifts, const std::optional<Array<uint32_t>>& mask,
               double temperature, const nb::tuple& filters, double point) {
  SamplingPlan plan{{}, nullptr, temperature, {}, point};
  std::vector<std::pair<Array<int64_t>, Array<double>>> held;
  for (const nb::handle each : shifts) {
    held.emplace_back(nb::cast<Array<int64_t>>(each.attr("ids"), false),
                      nb::cast<Array<double>>(each.attr("amounts"), false));
    const auto& [ids, amounts] = held.back();
    if (ids.size() != amounts.size()) throw std::invalid_argument("a shift has an amount for each of its tokens");
    plan.shifts.push_back({ids.data(), amounts.data(), ids.size(), nb::cast<double>(each.attr("repeat"))});
  }
  if (mask.has_value()) {
    if (mask->size() != (row.size() + 31) / 32) throw std::invalid_argument("a mask has a bit for each logit");
    plan.mask = mask->data();
  }
  for (const nb::handle each : filters) {
    const auto value = nb::cast<double>(each[1]);
    plan.filters.emplace_back(filter_of(nb::cast<std::string_view>(each[0]), value), value);
  }
  if (!(temperature >= 0 && point >= 0 && point < 1)) throw std::invalid_argument("no such temperature or point");
  if (row.size() < kLarge) return edgellm::engine::choose(row.data(), row.size(), plan);
  const nb::gil_scoped_release release;
  return edgellm::engine::choose(row.data(), row.size(), plan);
}

}  // namespace

void edgellm::bind_sampling(nb::module_& m) {
  m.def("choose", &choose, "row"_a.noconvert(), "shifts"_a, "mask"_a.noconvert().none(), "temperature"_a, "filters"_a,
        "point"_a);
  m.def(
      "log_probabilities",
      [](const Array<float>& row, size_t token, size_t n) {
        if (token >= row.size()) throw std::out_of_range("no logit of token " + std::to_string(token));
        edgellm::engine::LogProbabilities found = edgellm::engine::log_probabilities(row.data(), row.size(), token, n);
        return std::pair(found.chosen, std::move(found.top));
      },
      "row"_a.noconvert(), "token"_a, "n"_a);
}
