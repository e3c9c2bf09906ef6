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

// A matrix in memory, or several of `stack_rows` rows one after the other, and what an adapter adds to it: B A of low
// rank, a product for each matrix of the stack.
struct Matrix {
    const void *values;
    const float *scales;  // of int8, one for each row
    int64_t type;         // `NumberType`
    const float *A = nullptr;  // [stack, rank, width] for the whole matrix; null: nothing is added
    const float *B = nullptr;  // [stack, stack_rows, rank] from `row` on
    int64_t rank = 0, stack_rows = 0;
    int64_t row = 0;  // the first of these rows in the whole matrix
    explicit operator bool() const { return values != nullptr; }
    // The rows from `first` on, which have `width` numbers each.
    Matrix from(int64_t first, int64_t width) const {
        Matrix part = *this;
        part.values = static_cast<const char *>(values) + first * width * size_of(type);
        if (scales) part.scales = scales + first;
        if (B) part.B = B + first * rank;
        part.row = row + first;
        return part;
    }
};

// out[t·ldo + r] = ⟨x_t, row r⟩ for `tokens` vectors of n floats and the first `rows` rows of the matrix, of one of the
// stack, with what is added to them.
void products(int tokens, int rows, const float *const *x, const Matrix &w, int n, float *out, int64_t ldo);

}  // namespace gossamer
