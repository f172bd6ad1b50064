// The infc dialect. Kinds of operands that MLIR's IRDL cannot state (shapes that must agree, roles of
// attributes) are checked by infc.ir.verifier. Calls of kernels and layers are `func.call`: MLIR then
// checks their operand types against the callee.
irdl.dialect @infc {
  // ---- types ----
  // Element type of a tensor kept in a storage format: !infc.storage<"q8_0">.
  irdl.type @storage {
    %name = irdl.any
    irdl.parameters(name: %name)
  }
  // One layer's KV cache: dtype, kv heads, head dimension, positions held, window (0: all).
  irdl.type @kv {
    %dtype = irdl.any
    %heads = irdl.any
    %dim = irdl.any
    %capacity = irdl.any
    %window = irdl.any
    irdl.parameters(dtype: %dtype, kv_heads: %heads, head_dim: %dim, capacity: %capacity, window: %window)
  }
  // A tensor that has a place: its type, its layout, the space it lives in.
  irdl.type @buffer {
    %tensor = irdl.any
    %layout = irdl.any
    %space = irdl.any
    irdl.parameters(tensor: %tensor, layout: %layout, space: %space)
  }
  // What a transfer that has begun is waited for by.
  irdl.type @token { }

  // ---- declarations ----
  irdl.operation @dim {
    %s = irdl.any
    %min = irdl.any
    %max = irdl.any
    irdl.attributes { "sym_name" = %s, "min" = %min, "max" = %max }
  }
  irdl.operation @device {
    %s = irdl.any
    %t = irdl.any
    irdl.attributes { "sym_name" = %s, "target" = %t }
  }
  irdl.operation @packed {
    %s = irdl.any
    %o = irdl.any
    %b = irdl.any
    %l = irdl.any
    %t = irdl.any
    irdl.attributes { "sym_name" = %s, "offset" = %o, "size_bytes" = %b, "layout" = %l, "type" = %t }
  }

  // ---- graph ----
  irdl.operation @weight {
    %t = irdl.base "!builtin.tensor"
    %n = irdl.any
    irdl.attributes { "source" = %n }
    irdl.results(y: %t)
  }
  irdl.operation @embed {
    %i = irdl.base "!builtin.tensor"
    %w = irdl.base "!builtin.tensor"
    %t = irdl.base "!builtin.tensor"
    %s = irdl.any
    irdl.operands(tokens: %i, table: %w)
    irdl.attributes { "scale" = %s }
    irdl.results(y: %t)
  }
  irdl.operation @rms_norm {
    %t = irdl.base "!builtin.tensor"
    %w = irdl.base "!builtin.tensor"
    %e = irdl.any
    %o = irdl.any
    irdl.operands(x: %t, weight: %w)
    irdl.attributes { "eps" = %e, "offset" = %o }
    irdl.results(y: %t)
  }
  irdl.operation @linear {
    %x = irdl.base "!builtin.tensor"
    %w = irdl.base "!builtin.tensor"
    %b = irdl.base "!builtin.tensor"
    %y = irdl.base "!builtin.tensor"
    irdl.operands(x: %x, weight: %w, bias: optional %b)
    irdl.results(y: %y)
  }
  irdl.operation @rope {
    %t = irdl.base "!builtin.tensor"
    %p = irdl.base "!builtin.tensor"
    %c = irdl.base "!builtin.tensor"
    %h = irdl.any
    %i = irdl.any
    irdl.operands(x: %t, positions: %p, table: %c)
    irdl.attributes { "head_dim" = %h, "interleaved" = %i }
    irdl.results(y: %t)
  }
  irdl.operation @rope_table {
    %t = irdl.base "!builtin.tensor"
    %f = irdl.any
    %m = irdl.any
    irdl.attributes { "inverse_frequencies" = %f, "magnitude" = %m }
    irdl.results(y: %t)
  }
  irdl.operation @attention {
    %q = irdl.base "!builtin.tensor"
    %k = irdl.base "!builtin.tensor"
    %v = irdl.base "!builtin.tensor"
    %p = irdl.base "!builtin.tensor"
    %h = irdl.any
    %d = irdl.any
    %s = irdl.any
    %w = irdl.any
    irdl.operands(q: %q, k: %k, v: %v, positions: %p)
    irdl.attributes { "heads" = %h, "head_dim" = %d, "scale" = %s, "window" = %w }
    irdl.results(y: %q)
  }
  irdl.operation @add {
    %t = irdl.base "!builtin.tensor"
    irdl.operands(a: %t, b: %t)
    irdl.results(y: %t)
  }
  irdl.operation @mul {
    %t = irdl.base "!builtin.tensor"
    irdl.operands(a: %t, b: %t)
    irdl.results(y: %t)
  }
  irdl.operation @activation {
    %t = irdl.base "!builtin.tensor"
    %k = irdl.any
    irdl.operands(x: %t)
    irdl.attributes { "kind" = %k }
    irdl.results(y: %t)
  }
  irdl.operation @softcap {
    %t = irdl.base "!builtin.tensor"
    %c = irdl.any
    irdl.operands(x: %t)
    irdl.attributes { "cap" = %c }
    irdl.results(y: %t)
  }

  // ---- phase ----
  irdl.operation @kv_cache {
    %t = irdl.base @infc::@kv
    %l = irdl.any
    irdl.attributes { "index" = %l }
    irdl.results(cache: %t)
  }
  irdl.operation @kv_append {
    %c = irdl.base @infc::@kv
    %k = irdl.base "!builtin.tensor"
    %v = irdl.base "!builtin.tensor"
    %p = irdl.base "!builtin.tensor"
    %s = irdl.base "!builtin.tensor"
    irdl.operands(cache: %c, k: %k, v: %v, positions: %p, slots: %s)
    irdl.results(updated: %c)
  }
  irdl.operation @kv_attention {
    %q = irdl.base "!builtin.tensor"
    %c = irdl.base @infc::@kv
    %p = irdl.base "!builtin.tensor"
    %s = irdl.base "!builtin.tensor"
    %h = irdl.any
    %f = irdl.any
    irdl.operands(q: %q, cache: %c, positions: %p, slots: %s)
    irdl.attributes { "heads" = %h, "scale" = %f }
    irdl.results(y: %q)
  }
  irdl.operation @select_rows {
    %x = irdl.base "!builtin.tensor"
    %r = irdl.base "!builtin.tensor"
    %y = irdl.base "!builtin.tensor"
    irdl.operands(x: %x, rows: %r)
    irdl.results(y: %y)
  }
  irdl.operation @argmax {
    %x = irdl.base "!builtin.tensor"
    %i = irdl.base "!builtin.tensor"
    %y = irdl.base "!builtin.tensor"
    irdl.operands(x: %x, ids: optional %i)
    irdl.results(y: %y)
  }
  irdl.operation @top_k {
    %x = irdl.base "!builtin.tensor"
    %i = irdl.base "!builtin.tensor"
    %v = irdl.base "!builtin.tensor"
    %y = irdl.base "!builtin.tensor"
    irdl.operands(x: %x, ids: optional %i)
    irdl.results(values: %v, found: %y)
  }

  // ---- schedule ----
  irdl.operation @quantize {
    %x = irdl.base "!builtin.tensor"
    %y = irdl.base "!builtin.tensor"
    irdl.operands(x: %x)
    irdl.results(y: %y)
  }

  irdl.operation @head_candidates {
    %x = irdl.base "!builtin.tensor"
    %w = irdl.base "!builtin.tensor"
    %v = irdl.base "!builtin.tensor"
    %y = irdl.base "!builtin.tensor"
    %c = irdl.any
    irdl.operands(x: %x, weight: %w)
    irdl.attributes { "count" = %c }
    irdl.results(values: %v, ids: %y)
  }

  // ---- memory ----
  irdl.operation @space {
    %b = irdl.base @infc::@buffer
    %s = irdl.any
    irdl.attributes { "size_bytes" = %s }
    irdl.results(y: %b)
  }
  irdl.operation @alloc {
    %f = irdl.base @infc::@buffer
    %b = irdl.base @infc::@buffer
    %o = irdl.any
    %s = irdl.any
    irdl.operands(frame: %f)
    irdl.attributes { "offset" = %o, "size_bytes" = %s }
    irdl.results(y: %b)
  }
  irdl.operation @packed_ref {
    %b = irdl.base @infc::@buffer
    %s = irdl.any
    irdl.attributes { "packed" = %s }
    irdl.results(y: %b)
  }
  irdl.operation @read {
    %b = irdl.base @infc::@buffer
    %t = irdl.base "!builtin.tensor"
    irdl.operands(source: %b)
    irdl.results(y: %t)
  }
  irdl.operation @write {
    %t = irdl.base "!builtin.tensor"
    %b = irdl.base @infc::@buffer
    irdl.operands(x: %t, target: %b)
  }
  irdl.operation @barrier { }
  irdl.operation @move {
    %s = irdl.base @infc::@buffer
    %t = irdl.base @infc::@buffer
    irdl.operands(source: %s, target: %t)
  }
  irdl.operation @prefetch {
    %s = irdl.base @infc::@buffer
    %t = irdl.base @infc::@buffer
    %k = irdl.base @infc::@token
    %q = irdl.any
    irdl.operands(source: %s, target: %t)
    irdl.attributes { "queue" = %q }
    irdl.results(token: %k)
  }
  irdl.operation @wait {
    %k = irdl.base @infc::@token
    irdl.operands(token: %k)
  }
}
