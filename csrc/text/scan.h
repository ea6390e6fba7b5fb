// UTF-8 text to tokens, a block of a file at a time.
//
// A block is read up to the last token that is surely whole: what follows it, at most one word or
// one character, is to come again at the front of the next block. Line ends are \n, \r\n and \r,
// as in rnnfast.text.read_text; tokens are those of its tokenizers "char" and "ptb".
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "text/utf8.h"

namespace rnnfast {

struct Scanned {
  size_t read;     // bytes of the block that are done with
  size_t refused;  // bytes, from there on, that are no UTF-8 (one) or a token that the sink refused
};

namespace scan_detail {

// Of a line end that begins at `p`: 1, or 2 for \r\n; 0 if the next block may tell.
inline size_t line_end_size(const uint8_t* p, const uint8_t* end, bool last) {
  if (*p == '\n') return 1;
  if (p + 1 == end) return last ? 1 : 0;
  return p[1] == '\n' ? 2 : 1;
}

// Where, from `p` on, the first byte stands that is beyond ASCII or not above a blank: only such
// a byte can end a word. Eight bytes at a time, without a branch for each.
inline const uint8_t* skip_word_bytes(const uint8_t* p, const uint8_t* end) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first byte must be the lowest");
  constexpr uint64_t ones = ~uint64_t{0} / 0xff;
  for (; end - p >= 8; p += 8) {
    uint64_t bytes;
    std::memcpy(&bytes, p, 8);
    // No byte borrows from the next, for each is 0x80 at least before the subtraction.
    const uint64_t above_blank = (bytes | ones * 0x80) - ones * (' ' + 1);
    const uint64_t found = (~above_blank | bytes) & ones * 0x80;
    if (found) return p + __builtin_ctzll(found) / 8;
  }
  while (p < end && *p > ' ' && *p < 0x80) ++p;
  return p;
}

}  // namespace scan_detail

// Calls `sink(code)` for each character, a line end being \n, until it returns false. `last`: no
// block comes after this one.
template <class Sink>
Scanned scan_characters(const uint8_t* text, size_t size, bool last, Sink&& sink) {
  const uint8_t* const end = text + size;
  const uint8_t* p = text;
  while (p < end) {
    Character c{*p, 1};
    if (c.code >= 0x80) {
      c = decode_character(p, end);
      const bool cut_off = c.size > static_cast<size_t>(end - p);
      if (cut_off && !last) break;
      if (cut_off || c.size == 0) return {static_cast<size_t>(p - text), 1};
    } else if (c.code == '\r') {
      c = {'\n', scan_detail::line_end_size(p, end, last)};
      if (c.size == 0) break;
    }
    if (!sink(c.code)) return {static_cast<size_t>(p - text), c.size};
    p += c.size;
  }
  return {static_cast<size_t>(p - text), 0};
}

// Calls `sink.word(bytes, size)` for what stands between blanks and `sink.line_end()` for each line
// end, until one returns false. `last`: no block comes after this one.
template <class Sink>
Scanned scan_words(const uint8_t* text, size_t size, bool last, Sink&& sink) {
  const uint8_t* const end = text + size;
  const uint8_t* word = text;  // where the word or blank at p begins
  const uint8_t* p = text;
  const auto stop = [text](const uint8_t* at, size_t refused) {
    return Scanned{static_cast<size_t>(at - text), refused};
  };
  for (;;) {
    p = scan_detail::skip_word_bytes(p, end);
    if (p == end) break;
    Character c{*p, 1};
    if (c.code >= 0x80) {
      c = decode_character(p, end);
      const bool cut_off = c.size > static_cast<size_t>(end - p);
      if (cut_off && !last) return stop(word, 0);
      if (cut_off || c.size == 0) return stop(p, 1);
    }
    if (!is_blank(c.code)) {
      p += c.size;
      continue;
    }
    const size_t word_size = static_cast<size_t>(p - word);
    if (word_size && !sink.word(word, word_size)) return stop(word, word_size);
    if (c.code == '\n' || c.code == '\r') {
      c.size = scan_detail::line_end_size(p, end, last);
      if (c.size == 0) return stop(p, 0);
      if (!sink.line_end()) return stop(p, c.size);
    }
    p += c.size;
    word = p;
  }
  const size_t word_size = static_cast<size_t>(p - word);
  if (!last || word_size == 0) return stop(word, 0);
  if (!sink.word(word, word_size)) return stop(word, word_size);
  return stop(end, 0);
}

}  // namespace rnnfast
