// Decoding, colouring and drawing of photographs, label maps and uncertainty maps.

/** The ImageData of a base64 PNG or of a blob. */
export async function pixelsOf(source) {
  const blob = typeof source === 'string' ? new Blob([bytesOf(source)], { type: 'image/png' }) : source
  const bitmap = await createImageBitmap(blob)
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height)
  const context = canvas.getContext('2d', { willReadFrequently: true })
  context.drawImage(bitmap, 0, 0)
  return context.getImageData(0, 0, bitmap.width, bitmap.height)
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))
}

/** A label map with the colours in `shown` (a Set of strings like '#1fe0ff') opaque and everything else transparent. */
export function tinted(labels, shown) {
  const wanted = new Set([...shown].map((colour) => parseInt(colour.slice(1), 16)))
  const out = new ImageData(labels.width, labels.height)
  const from = labels.data, to = out.data
  for (let i = 0; i < from.length; i += 4) {
    if (!wanted.has((from[i] << 16) | (from[i + 1] << 8) | from[i + 2])) continue
    to[i] = from[i]
    to[i + 1] = from[i + 1]
    to[i + 2] = from[i + 2]
    to[i + 3] = 255
  }
  return out
}

/** The masks of single classes stacked, later ones on top, transparent where there is none; of the size of `like`. */
export function stacked(layers, like) {
  const out = new ImageData(like.width, like.height)
  for (const { data } of layers) {
    for (let i = 0; i < data.length; i += 4) {
      if (!data[i] && !data[i + 1] && !data[i + 2]) continue
      out.data.set(data.subarray(i, i + 3), i)
      out.data[i + 3] = 255
    }
  }
  return out
}

// The colour map plasma at 0, 1/3, 2/3 and 1, which is also readable with red-green colour blindness.
const STOPS = [[13, 8, 135], [156, 23, 158], [237, 121, 83], [240, 249, 33]]

/** A grey uncertainty map in the colours of STOPS, transparent where all votes agree. */
export function heated(grey) {
  const out = new ImageData(grey.width, grey.height)
  for (let i = 0; i < grey.data.length; i += 4) {
    const value = grey.data[i] / 255
    if (!value) continue
    const at = Math.min(2, Math.floor(value * 3)), rest = value * 3 - at
    for (let c = 0; c < 3; c++) out.data[i + c] = STOPS[at][c] + rest * (STOPS[at + 1][c] - STOPS[at][c])
    out.data[i + 3] = 255 * Math.min(1, 0.35 + value)
  }
  return out
}

/** Draw a picture (ImageData or ImageBitmap) onto a canvas, which takes its size. */
export function paint(canvas, picture) {
  canvas.width = picture.width
  canvas.height = picture.height
  const context = canvas.getContext('2d')
  if (picture instanceof ImageData) context.putImageData(picture, 0, 0)
  else context.drawImage(picture, 0, 0)
}
