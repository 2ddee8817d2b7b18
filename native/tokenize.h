// Text to tokens through llama.cpp, on a stack that is large enough for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace edgellm {

// A part of a text: its first character, and how many.
struct Stretch {
  size_t first = 0, count = 0;
};

// The longest part of a UTF-8 text that one match of a pre-tokenizer's regular expression may span.
//
// No expression of llama.cpp goes on from a word to the blanks behind it, or from blanks to the word behind them, by
// more than one character. Those that do are seen as going on: line ends behind anything, slashes behind line ends,
// single blanks between letters, and characters outside of ASCII, of whatever kind.
Stretch longest_stretch(std::string_view text);

// The shape of llama_tokenize (llama.h).
using TokenizeFunction = int32_t (*)(const void* vocabulary, const char* text, int32_t bytes, int32_t* tokens,
                                     int32_t room, bool add_special, bool parse_special);

// Calls `function` where so many bytes of stack are left, in a thread of its own if not here, and gives the tokens,
// without those that the model asks for around a text.
//
// std::bad_alloc where there is no memory for the stack or the tokens, std::runtime_error with the words of whatever
// else the function throws, std::length_error for a text that is too long for its numbers.
std::vector<int32_t> tokenize(TokenizeFunction function, const void* vocabulary, std::string_view text,
                              bool parse_special, size_t stack);

}  // namespace edgellm
