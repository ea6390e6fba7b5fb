#include "text/tokens.h"

namespace rnnfast {
namespace {

constexpr char kEndOfLine[] = "<eos>";
constexpr size_t kEndOfLineSize = sizeof kEndOfLine - 1;

const uint8_t* bytes_of(const char* text) { return reinterpret_cast<const uint8_t*>(text); }

}  // namespace

CharacterEncoder::CharacterEncoder(const std::vector<std::pair<uint32_t, int32_t>>& ids,
                                   int32_t unknown)
    : ids_(kCodePoints, unknown) {
  for (const auto& [code, id] : ids) ids_.at(code) = id;
}

template <class Id>
Scanned CharacterEncoder::encode(const uint8_t* text, size_t size, bool last, Id* ids,
                                 size_t* count) const {
  Id* next = ids;
  const int32_t* const id_of = ids_.data();
  const Scanned scanned = scan_characters(text, size, last, [&](uint32_t code) {
    const int32_t id = id_of[code];
    if (id < 0) return false;
    *next++ = static_cast<Id>(id);
    return true;
  });
  *count = static_cast<size_t>(next - ids);
  return scanned;
}

WordEncoder::WordEncoder(const std::vector<std::string>& tokens, int32_t unknown)
    : unknown_(unknown) {
  for (const std::string& token : tokens)
    words_.insert(bytes_of(token.data()), token.size(), token.size());
  const int32_t end_of_line = words_.find(bytes_of(kEndOfLine), kEndOfLineSize, kEndOfLineSize);
  end_of_line_ = end_of_line < 0 ? unknown : end_of_line;
}

template <class Id>
Scanned WordEncoder::encode(const uint8_t* text, size_t size, bool last, Id* ids,
                            size_t* count) const {
  struct Sink {
    const WordEncoder& encoder;
    const uint8_t* end;
    Id* next;

    bool put(int32_t id) {
      if (id < 0) return false;
      *next++ = static_cast<Id>(id);
      return true;
    }
    bool word(const uint8_t* word, size_t size) {
      const int32_t id = encoder.words_.find(word, size, static_cast<size_t>(end - word));
      return put(id < 0 ? encoder.unknown_ : id);
    }
    bool line_end() { return put(encoder.end_of_line_); }
  };
  Sink sink{*this, text + size, ids};
  const Scanned scanned = scan_words(text, size, last, sink);
  *count = static_cast<size_t>(sink.next - ids);
  return scanned;
}

CharacterCounter::CharacterCounter() : counts_(kCodePoints, 0) {}

Scanned CharacterCounter::count(const uint8_t* text, size_t size, bool last) {
  int64_t* const counts = counts_.data();
  return scan_characters(text, size, last, [counts](uint32_t code) {
    ++counts[code];
    return true;
  });
}

CharacterCounter::Counts CharacterCounter::counts() const {
  Counts counts;
  for (uint32_t code = 0; code < kCodePoints; ++code)
    if (counts_[code]) counts.emplace_back(code, counts_[code]);
  return counts;
}

Scanned WordCounter::count(const uint8_t* text, size_t size, bool last) {
  struct Sink {
    WordTable& words;
    std::vector<int64_t>& counts;
    const uint8_t* end;

    bool add(int32_t number) {
      const size_t place = static_cast<size_t>(number);
      if (place == counts.size()) counts.push_back(0);
      ++counts[place];
      return true;
    }
    bool word(const uint8_t* word, size_t size) {
      return add(words.insert(word, size, static_cast<size_t>(end - word)));
    }
    bool line_end() {
      return add(words.insert(bytes_of(kEndOfLine), kEndOfLineSize, kEndOfLineSize));
    }
  };
  Sink sink{words_, counts_, text + size};
  return scan_words(text, size, last, sink);
}

WordCounter::Counts WordCounter::counts() const {
  Counts counts;
  for (int32_t number = 0; number < words_.size(); ++number)
    counts.emplace_back(words_.word(number), counts_[static_cast<size_t>(number)]);
  return counts;
}

template Scanned CharacterEncoder::encode(const uint8_t*, size_t, bool, uint8_t*, size_t*) const;
template Scanned CharacterEncoder::encode(const uint8_t*, size_t, bool, uint16_t*, size_t*) const;
template Scanned CharacterEncoder::encode(const uint8_t*, size_t, bool, int32_t*, size_t*) const;
template Scanned WordEncoder::encode(const uint8_t*, size_t, bool, uint8_t*, size_t*) const;
template Scanned WordEncoder::encode(const uint8_t*, size_t, bool, uint16_t*, size_t*) const;
template Scanned WordEncoder::encode(const uint8_t*, size_t, bool, int32_t*, size_t*) const;

}  // namespace rnnfast
