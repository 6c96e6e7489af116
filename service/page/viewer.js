// Zoom and pan by pointer, wheel and keyboard.

const STEP = 1.25
const PAN = 40

export class Viewer {
  /** `frame` is the visible window onto `layers`; `changed(scale)` is called whenever the view moves or scales. */
  constructor(frame, layers, changed) {
    Object.assign(this, { frame, layers, changed, width: 0, height: 0, scale: 1, x: 0, y: 0, fitted: true })
    this.pointers = new Map()
    frame.addEventListener('wheel', (event) => this.#wheel(event), { passive: false })
    frame.addEventListener('pointerdown', (event) => this.#down(event))
    frame.addEventListener('pointermove', (event) => this.#move(event))
    for (const kind of ['pointerup', 'pointercancel']) frame.addEventListener(kind, (event) => this.#up(event))
    frame.addEventListener('dblclick', () => this.fit())
    new ResizeObserver(() => this.fitted && this.fit()).observe(frame)
  }

  show(width, height) {
    const same = width === this.width && height === this.height
    Object.assign(this, { width, height })
    this.layers.hidden = false
    if (!same || this.fitted) this.fit()
  }

  fit() {
    if (!this.width) return
    const { clientWidth, clientHeight } = this.frame
    this.scale = Math.min(clientWidth / this.width, clientHeight / this.height)
    this.x = (clientWidth - this.width * this.scale) / 2
    this.y = (clientHeight - this.height * this.scale) / 2
    this.fitted = true
    this.#place()
  }

  /** Zoom by a factor about a point (x, y) of the frame, its centre by default. */
  zoom(factor, x = this.frame.clientWidth / 2, y = this.frame.clientHeight / 2) {
    if (!this.width) return
    const scale = Math.min(40, Math.max(0.05, this.scale * factor))
    this.x = x - (x - this.x) * (scale / this.scale)
    this.y = y - (y - this.y) * (scale / this.scale)
    this.scale = scale
    this.fitted = false
    this.#place()
  }

  pan(dx, dy) {
    this.x += dx
    this.y += dy
    this.fitted = false
    this.#place()
  }

  /** Handle a key; returns whether it has a meaning here. */
  press(key) {
    const meaning = {
      '+': () => this.zoom(STEP), '=': () => this.zoom(STEP), '-': () => this.zoom(1 / STEP), 0: () => this.fit(),
      ArrowLeft: () => this.pan(PAN, 0), ArrowRight: () => this.pan(-PAN, 0),
      ArrowUp: () => this.pan(0, PAN), ArrowDown: () => this.pan(0, -PAN),
    }[key]
    meaning?.()
    return meaning !== undefined
  }

  #place() {
    const { clientWidth, clientHeight } = this.frame
    const margin = 60 // pixels of the picture that always stay in sight
    this.x = Math.min(clientWidth - margin, Math.max(margin - this.width * this.scale, this.x))
    this.y = Math.min(clientHeight - margin, Math.max(margin - this.height * this.scale, this.y))
    this.layers.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`
    this.layers.classList.toggle('near', this.scale >= 3)
    this.changed(this.scale)
  }

  #wheel(event) {
    event.preventDefault()
    const box = this.frame.getBoundingClientRect()
    this.zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top)
  }

  #down(event) {
    this.pointers.set(event.pointerId, event)
    this.frame.setPointerCapture(event.pointerId)
    this.frame.classList.add('dragging')
  }

  #move(event) {
    const before = this.pointers.get(event.pointerId)
    if (!before || !this.width) return
    this.pointers.set(event.pointerId, event)
    const others = [...this.pointers.values()].filter((other) => other.pointerId !== event.pointerId)
    if (others.length === 0) return this.pan(event.clientX - before.clientX, event.clientY - before.clientY)
    const [other] = others, box = this.frame.getBoundingClientRect()
    const distance = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY)
    this.zoom(
      distance(event) / (distance(before) || 1),
      (event.clientX + other.clientX) / 2 - box.left,
      (event.clientY + other.clientY) / 2 - box.top,
    )
  }

  #up(event) {
    this.pointers.delete(event.pointerId)
    if (!this.pointers.size) this.frame.classList.remove('dragging')
  }
}
