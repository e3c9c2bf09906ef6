// Products of a few vectors with a matrix that is read once from memory, in which decoding spends most of its time.
//
// Every result is summed in one vector of partial sums, from the first number to the last, and then folded. This does
// not depend on how many vectors and rows are computed together, so a token's numbers do not depend on what is decoded
// beside it. A matrix is of float32, of bfloat16, which takes half of the bytes, or of int8 with a scale for each row,
// which takes a quarter; the products are those of float32 in each case.

#pragma once

#include "kernels.h"
#include "numbers.h"

namespace gossamer {

// A matrix in memory.
struct Matrix {
    const void *values;
    const float *scales;  // of int8, one for each row
    int64_t type;         // `NumberType`
    explicit operator bool() const { return values != nullptr; }
    // The rows from `row` on, which have `width` numbers each.
    Matrix from(int64_t row, int64_t width) const {
        const int64_t bytes = row * width * size_of(type);
        return {static_cast<const char *>(values) + bytes, scales ? scales + row : nullptr, type};
    }
};

// out[t·ldo + r] = ⟨x_t, row r⟩ for `tokens` vectors of n floats and the first `rows` rows of the matrix.
void products(int tokens, int rows, const float *const *x, const Matrix &w, int n, float *out, int64_t ldo);

}  // namespace gossamer
