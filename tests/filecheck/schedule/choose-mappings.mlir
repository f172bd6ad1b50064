// One row is cheaper to compute in every thread than to wait for; a product gets tiles; what the
// cost model counted is written down: 64 x 64 weights of 34 bytes a block of 32.
// RUN: infc opt %s --pipeline choose-mappings | filecheck %s

// CHECK-LABEL: func.func private @k0_rows(
// CHECK-SAME: infc.mapping = {partition = "replicate"}
// CHECK-SAME: infc.work = {barriers = 0 : i64
// CHECK-SAME: rows = 1 : i64
// CHECK-LABEL: func.func private @k1_matmul(
// CHECK-SAME: infc.mapping = {
// CHECK-SAME: col_tile = {{[0-9]+}} : i64
// CHECK-SAME: row_tile = {{[0-9]+}} : i64
// CHECK-SAME: infc.work = {barriers = 1 : i64, bytes = {{{[a-z]+}} = 4352 : i64}, class = "stream-product", operations = {int8 = 8192 : i64}, rows = 1 : i64, sizes = {
!x = tensor<?x64xf32, ["t", 64]>
!a = tensor<?x64x!infc.storage<"a8">, ["t", 64]>
!w = tensor<64x64x!infc.storage<"q8_0">>
module attributes {infc.level = "schedule", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 1 : i64} : () -> ()
    "infc.dim"() {sym_name = "r", min = 1 : i64, max = 1 : i64} : () -> ()
    func.func private @k0_rows(%x: !x) -> !a attributes {infc.kernel = "rows"} {
      %a = "infc.quantize"(%x) : (!x) -> !a
      return %a : !a
    }
    func.func private @k1_matmul(%a: !a, %w: !w) -> !x attributes {infc.kernel = "matmul"} {
      %y = "infc.linear"(%a, %w) : (!a, !w) -> !x
      return %y : !x
    }
    func.func @main(%x: !x, %w: !w) -> !x {
      %a = call @k0_rows(%x) : (!x) -> !a
      %y = call @k1_matmul(%a, %w) : (!a, !w) -> !x
      return %y : !x
    }
  }
}
// -----
// Of many rows each thread takes its share. The hint says how many there usually are, the limit how
// many there may be: 6 are counted.
// RUN: infc opt %s --pipeline choose-mappings | filecheck %s

// CHECK-LABEL: func.func private @k0_rows(
// CHECK-SAME: infc.mapping = {partition = "rows"}
// CHECK-SAME: infc.work = {barriers = 1 : i64
// CHECK-SAME: operations = {f32 = 1536 : i64}, rows = 6 : i64, sizes = {
// CHECK-LABEL: func.func @main(
// CHECK-NOT: infc.mapping
!x = tensor<?x64xf32, ["t", 64]>
module attributes {infc.level = "schedule", infc.options = {prompt = 6 : i64}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v4"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 8 : i64} : () -> ()
    "infc.dim"() {sym_name = "r", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func private @k0_rows(%x: !x) -> !x attributes {infc.kernel = "rows"} {
      %y = "infc.add"(%x, %x) : (!x, !x) -> !x
      return %y : !x
    }
    func.func @main(%x: !x) -> !x {
      %y = call @k0_rows(%x) : (!x) -> !x
      return %y : !x
    }
  }
}
