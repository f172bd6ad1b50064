// Weights lie one after the other in the order they are declared, each on a line of its own.
// RUN: infc opt %s --pipeline pack-weights | filecheck %s

// CHECK: infc.weight_bytes = 1152 : i64
// CHECK: "infc.packed"() {layout = "rows", offset = 0 : i64, size_bytes = 100 : i64, source = "a"
// CHECK: "infc.packed"() {layout = "rows", offset = 128 : i64, size_bytes = 64 : i64, source = "b"
// CHECK: "infc.packed"() {layout = "n16.u8.g32", offset = 192 : i64, size_bytes = 960 : i64, source = "c"
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  "infc.packed"() {sym_name = "w0", source = "a", offset = -1 : i64, size_bytes = 100 : i64, layout = "rows", type = tensor<25xf32>} : () -> ()
  "infc.packed"() {sym_name = "w1", source = "b", offset = -1 : i64, size_bytes = 64 : i64, layout = "rows", type = tensor<16xf32>} : () -> ()
  "infc.packed"() {sym_name = "w2", source = "c", offset = -1 : i64, size_bytes = 960 : i64, layout = "n16.u8.g32", type = tensor<16x32x!infc.storage<"q8_0">>} : () -> ()
}
// -----
// Nothing to pack is no weights.
// RUN: infc opt %s --pipeline pack-weights | filecheck %s

// CHECK: infc.weight_bytes = 0 : i64
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
}
