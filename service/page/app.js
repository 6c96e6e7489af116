// The list of dropped photographs, which are segmented one after the other, and the choice of the one shown.

import { ask, models } from './api.js'
import { AnswerPanel } from './answer.js'
import { element, get } from './dom.js'
import { paint } from './pictures.js'
import { Viewer } from './viewer.js'

const WANTED = { output: 'json', by_timestep: true, uncertainty: true }
const items = []
let shown = null
let stopping = null

const viewer = new Viewer(get('viewer'), get('layers'), (scale) => {
  get('zoom').textContent = `${Math.round(100 * scale)} %`
})
const panel = new AnswerPanel({ key: () => get('key').value, say })

function say(text, problem = false) {
  get('status').textContent = text
  get('status').className = problem ? 'problem' : ''
}

function add(files) {
  for (const file of files) {
    const item = { file, model: get('model').value, mirrored: get('mirrored').checked, state: 'waiting', note: 'waiting', row: element('li'), button: element('button', { type: 'button' }) }
    item.button.addEventListener('click', () => (item.state === 'done' ? show(item) : again(item)))
    item.row.append(item.button)
    get('list').append(item.row)
    items.push(item)
    draw(item)
  }
  if (files.length) work()
}

function again(item) {
  if (item.state !== 'failed') return
  set(item, 'waiting', 'waiting')
  work()
}

function set(item, state, note, why = '') {
  Object.assign(item, { state, note, why })
  draw(item)
}

function draw({ button, row, file, state, note, why, answer }) {
  row.className = state
  button.replaceChildren(
    element('span', { className: 'name', title: file.name }, file.name),
    element('span', { className: 'state' }, note + (answer?.abstain ? ', abstain' : '')),
    ...(why ? [element('span', { className: 'why' }, why + ' (press to try again)')] : []),
  )
}

/** Segment the waiting photographs in turn; returns at once if that is already running. */
async function work() {
  if (stopping) return
  stopping = new AbortController()
  get('running').hidden = false
  for (let item; !stopping.signal.aborted && (item = items.find((one) => one.state === 'waiting')); ) {
    count()
    await segment(item, stopping.signal)
  }
  for (const item of items) if (item.state === 'waiting') set(item, 'failed', 'stopped', 'stopped before it was sent')
  stopping = null
  get('running').hidden = true
}

function count() {
  const done = items.filter((one) => one.state === 'done' || one.state === 'failed').length
  get('progress').max = items.length
  get('progress').value = done
  say(`Segmenting ${done + 1} of ${items.length} …`)
}

async function segment(item, signal) {
  const started = performance.now()
  const elapsed = () => `${((performance.now() - started) / 1000).toFixed(1)} s`
  set(item, 'busy', '0.0 s')
  const clock = setInterval(() => set(item, 'busy', elapsed()), 200)
  const how = { key: get('key').value, signal, waiting: (s) => say(`The service is busy; asking again in ${s} s …`) }
  try {
    item.answer = await (await ask(item.file, { ...WANTED, ...(item.model && { model: item.model }), mirrored: item.mirrored }, how)).json()
    item.photo = await photograph(item.file, how)
    clearInterval(clock)
    set(item, 'done', elapsed())
    say(`${item.file.name}: ${elapsed()}, ${item.answer.cached ? 'its features were cached' : `${item.answer.forwards} network forwards`}`)
    if (!shown || shown === item) await show(item)
  } catch (error) {
    clearInterval(clock)
    set(item, 'failed', signal.aborted ? 'stopped' : 'no answer', signal.aborted ? 'stopped' : error.message)
    say(signal.aborted ? 'Stopped.' : error.message, !signal.aborted)
    if (error.status === 401) {
      get('access').open = true
      get('key').focus()
    }
  }
}

/** An image that the browser can show: the file itself, or the service's rendering if the browser cannot decode it. */
async function photograph(file, how) {
  try {
    ;(await createImageBitmap(file)).close()
    return file
  } catch {
    return (await ask(file, { output: 'overlay', opacity: 0, fov_only: true }, how)).blob()
  }
}

async function show(item) {
  shown = item
  for (const one of items) one.button.setAttribute('aria-current', one === item)
  get('empty').hidden = true
  get('layers').hidden = true // the previous mask must not lie over this photograph
  get('viewer').setAttribute('aria-label', `Photograph ${item.file.name} with its mask`)
  try {
    const pixels = await createImageBitmap(item.photo) // decoded only when shown: a hundred decoded photographs would fill the memory
    if (shown === item) paint(get('photo'), pixels)
    pixels.close()
    if (shown !== item) return
    await panel.show(item)
  } catch (error) {
    if (shown === item) say(`${item.file.name}: the answer cannot be shown (${error.message})`, true)
    return
  }
  if (shown !== item) return
  viewer.show(item.answer.width, item.answer.height)
}

function neighbour(step) {
  const done = items.filter((one) => one.state === 'done')
  const next = done[done.indexOf(shown) + step]
  if (next) show(next)
}

/** Let the user choose among the models, if there are several. */
async function offerModels() {
  const found = await models(get('key').value).catch(() => [])
  get('model').replaceChildren(...found.map(({ name }) => element('option', { value: name }, name)))
  get('models').hidden = found.length < 2
}

offerModels()
get('key').addEventListener('change', offerModels)
get('files').addEventListener('change', () => {
  add([...get('files').files])
  get('files').value = ''
})
for (const kind of ['dragover', 'drop', 'dragleave']) {
  document.addEventListener(kind, (event) => {
    event.preventDefault()
    get('drop').classList.toggle('over', kind === 'dragover')
    if (kind === 'drop') add([...event.dataTransfer.files])
  })
}
get('stop').addEventListener('click', () => stopping?.abort())
get('zoom-in').addEventListener('click', () => viewer.press('+'))
get('zoom-out').addEventListener('click', () => viewer.press('-'))
get('fit').addEventListener('click', () => viewer.fit())
get('viewer').addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return
  const known = viewer.press(event.key) || panel.press(event.key.toLowerCase())
  if (event.key === 'PageDown' || event.key === 'PageUp') neighbour(event.key === 'PageDown' ? 1 : -1)
  else if (!known) return
  event.preventDefault()
})
