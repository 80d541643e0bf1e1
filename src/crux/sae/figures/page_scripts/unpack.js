// Reads the blocks of the page: base64 of gzip of arrays, whose bytes are stored lowest first (crux/sae/figures/packed_arrays.py).

// Bytes per number: those of u1, u2 and u4 are in the name; f12 is a float32 of 12 significant bits, and up to 8 bits fit into two bytes.
const widthOf = (kind) => (kind[0] === "u" ? Number(kind.slice(1)) : Number(kind.slice(1)) > 8 ? 4 : 2);

async function readBlock(name) {
  const element = document.getElementById(name);
  if (!element) throw new Error(`the page has no block ${name}`);
  const text = atob(element.textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function readJson(name) {
  return JSON.parse(new TextDecoder().decode(await readBlock(name)));
}

// Returns name → typed array.
async function readArrays(name, types) {
  const bytes = await readBlock(name);
  const lengths = new DataView(bytes.buffer);
  const arrays = {};
  let position = 4 * types.length;
  types.forEach(([key, kind], n) => {
    const length = lengths.getUint32(4 * n, true), width = widthOf(kind);
    arrays[key] = joinBytes(bytes.subarray(position, position + length * width), length, kind);
    position += length * width;
  });
  return arrays;
}

function joinBytes(planes, length, kind) {
  if (kind === "u1") return planes;
  const width = widthOf(kind);
  const floats = kind[0] === "f";
  const joined = new Uint32Array(length);
  for (let plane = 0; plane < width; plane++) {
    const shift = 8 * (floats && width === 2 ? plane + 2 : plane);
    const first = plane * length;
    for (let i = 0; i < length; i++) joined[i] |= planes[first + i] << shift;
  }
  return floats ? new Float32Array(joined.buffer) : joined;
}

// Returns where each of consecutive groups begins, and where the last one ends.
function sumLengths(lengths) {
  const offsets = new Uint32Array(lengths.length + 1);
  for (let i = 0; i < lengths.length; i++) offsets[i + 1] = offsets[i] + lengths[i];
  return offsets;
}
