// Makes a PNG smaller: an indexed one, in which each pixel has the nearest of the most frequent colors.
const [png, most, done] = arguments;

const distance = (a, b) =>
  [0, 8, 16].reduce((sum, shift) => sum + (((a >> shift) & 255) - ((b >> shift) & 255)) ** 2, 0);

const crc = (bytes) => {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc;
};

const number = (value) => [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];
const chunk = (name, data) => {
  const named = [...new TextEncoder().encode(name), ...data];
  return [...number(data.length), ...named, ...number(crc(named))];
};

const smaller = async () => {
  const bitmap = await createImageBitmap(
    new Blob([Uint8Array.from(atob(png), (character) => character.charCodeAt(0))]),
  );
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const pixels = new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);

  const counts = new Map();
  for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
  const colors = [...counts].sort((a, b) => b[1] - a[1]).slice(0, most).map(([pixel]) => pixel);
  const indexes = new Map();
  for (const pixel of counts.keys()) {
    const nearest = colors.reduce((a, b) => (distance(pixel, b) < distance(pixel, a) ? b : a));
    indexes.set(pixel, colors.indexOf(nearest));
  }

  // Each line begins with its filter, which is none.
  const lines = new Uint8Array((width + 1) * height);
  pixels.forEach((pixel, at) => {
    lines[Math.floor(at / width) * (width + 1) + 1 + (at % width)] = indexes.get(pixel);
  });
  const deflated = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(deflated).arrayBuffer());
  const file = Uint8Array.from([
    ...[137, 80, 78, 71, 13, 10, 26, 10],
    ...chunk("IHDR", [...number(width), ...number(height), 8, 3, 0, 0, 0]),
    ...chunk("PLTE", colors.flatMap((color) => [color & 255, (color >> 8) & 255, (color >> 16) & 255])),
    ...chunk("IDAT", data),
    ...chunk("IEND", []),
  ]);
  return btoa(file.reduce((text, byte) => text + String.fromCharCode(byte), ""));
};
smaller().then(done, (error) => done({ error: String(error) }));
