#include "text/word_table.h"

#include <stdexcept>

namespace rnnfast {
namespace {

constexpr size_t kFirstSlots = 1024;

}  // namespace

WordTable::WordTable() : slots_(kFirstSlots, Slot{0, 0, -1}), ends_{0} {}

int32_t WordTable::add(const Key& key) {
  const int32_t number = size();
  if (number == std::numeric_limits<int32_t>::max())
    throw std::length_error("more different words than 32 bits can number");
  if (2 * ends_.size() > slots_.size()) grow();
  bytes_.insert(bytes_.end(), key.word, key.word + key.size);
  ends_.push_back(bytes_.size());
  slots_[slot_of(key)] = {key.head, key.size_in_slot(), number};
  return number;
}

void WordTable::grow() {
  std::vector<Slot> old(2 * slots_.size(), Slot{0, 0, -1});
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.number < 0) continue;
    const std::string_view held = word(slot.number);
    const Key key(reinterpret_cast<const uint8_t*>(held.data()), held.size(), held.size());
    slots_[slot_of(key)] = slot;
  }
}

}  // namespace rnnfast
