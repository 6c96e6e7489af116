// The panel of one answer: overlay and its controls, voters, figures, warnings and downloads.

import { ask } from './api.js'
import { element, get } from './dom.js'
import { heated, paint, pixelsOf, stacked, tinted } from './pictures.js'

const DOWNLOADS = [
  ['Mask (PNG)', 'png', '_mask.png'],
  ['Overlay (PNG)', 'overlay', '_overlay.png'],
  ['JSON', 'json', '.json'],
  ['Probabilities (NPZ)', 'npz', '.npz'],
  ['DICOM SEG', 'dicom-seg', '_seg.dcm'],
]
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`

export class AnswerPanel {
  /** `key()` returns the API key; `say(text, problem)` shows a message in the status line. */
  constructor({ key, say }) {
    Object.assign(this, { key, say, item: null, hidden: new Set(), step: 'vote' })
    get('show').addEventListener('change', () => this.#visibility())
    get('uncertain').addEventListener('change', () => this.#visibility())
    get('opacity').addEventListener('input', () => this.#visibility())
    this.#visibility()
  }

  async show(item) {
    this.item = item
    const { answer } = item
    const vote = await pixelsOf(answer.mask_png)
    const layers = {}
    for (const [name, mask] of Object.entries(answer.masks_png ?? {})) layers[name] = await pixelsOf(mask)
    const uncertainty = answer.uncertainty_png ? heated(await pixelsOf(answer.uncertainty_png)) : null
    if (this.item !== item) return // another photograph was chosen meanwhile
    this.votes = { vote, ...answer.by_timestep } // the voters' maps stay base64 until they are looked at
    this.layers = answer.masks_png ? layers : null // one mask per class, for models whose classes may overlap
    if (!(this.step in this.votes)) this.step = 'vote'
    if (uncertainty) paint(get('heat'), uncertainty)
    get('nothing').hidden = true
    get('answer').hidden = false
    this.#trust(answer)
    this.#classes(answer)
    this.#steps()
    this.#figures(answer)
    await Promise.all([this.#downloads(), this.#mask()])
  }

  /** Handle a key; returns whether it has a meaning here. */
  press(key) {
    if (!this.item) return false
    if (key === 'o') get('show').click()
    else if (key === 'u') get('uncertain').click()
    else if (key === '[' || key === ']') this.#turn(key === ']' ? 1 : -1)
    else return false
    return true
  }

  #visibility() {
    get('mask').style.visibility = get('show').checked ? 'visible' : 'hidden'
    get('mask').style.opacity = get('opacity').value / 100
    get('heat').style.visibility = get('uncertain').checked ? 'visible' : 'hidden'
    get('scale').hidden = !get('uncertain').checked
  }

  async #mask() {
    const { item, step, votes } = this
    if (typeof votes[step] === 'string') votes[step] = await pixelsOf(votes[step])
    if (this.item !== item || this.step !== step) return
    const shown = this.item.answer.classes.filter((one) => one.colour && !this.hidden.has(one.name))
    if (this.layers && step === 'vote') paint(get('mask'), stacked(shown.map((one) => this.layers[one.name]), votes.vote))
    else paint(get('mask'), tinted(votes[step], new Set(shown.map((one) => one.colour))))
  }

  #trust(answer) {
    get('abstain').hidden = !answer.abstain
    get('abstain').textContent = 'Do not rely on this answer: the photograph is unlike the images that the model was trained on'
      + `${unusual(answer.domain)}.`
    get('warnings').replaceChildren(...answer.warnings.map((text) => element('li', {}, text)))
    get('warnings').hidden = !answer.warnings.length
  }

  #classes(answer) {
    get('classes').replaceChildren(...answer.classes.filter((one) => one.colour).map(({ name, colour }) => {
      const box = element('input', { type: 'checkbox', checked: !this.hidden.has(name) })
      box.addEventListener('change', () => {
        if (box.checked) this.hidden.delete(name)
        else this.hidden.add(name)
        this.#mask()
      })
      return element('label', { className: 'row' }, box, swatch(colour), name)
    }))
  }

  #steps() {
    get('steps').replaceChildren(...this.#order().map((step) => {
      const radio = element('input', { type: 'radio', name: 'step', value: step, checked: step === this.step })
      radio.addEventListener('change', () => this.#choose(step))
      return element('label', {}, radio, step === 'vote' ? 'all' : timestep(step) ? `t = ${step}` : step)
    }))
  }

  /** The choices in order: the vote of all, then each voter in the order of the answer. */
  #order() {
    return ['vote', ...Object.keys(this.votes).filter((step) => step !== 'vote')]
  }

  #choose(step) {
    this.step = step
    this.say(step === 'vote' ? 'All vote.' : `${timestep(step) ? `Timestep ${step}` : step} alone.`)
    this.#mask()
  }

  #turn(by) {
    const steps = this.#order()
    const step = steps[(steps.indexOf(this.step) + by + steps.length) % steps.length]
    get('steps').querySelector(`[value="${step}"]`).checked = true
    this.#choose(step)
  }

  #figures(answer) {
    const number = (text) => element('td', {}, text)
    get('shares').replaceChildren(...answer.classes.filter((one) => one.colour).map((one) => {
      const name = element('th', { scope: 'row' }, one.name)
      return element('tr', {}, name, number(percent(one.share, 2)), number(one.score === null ? 'none' : percent(one.score, 0)))
    }))
    const { domain } = answer
    const several = Object.keys(this.votes).length > 2 // a single voter always agrees with itself
    const rows = {
      ...(several && {
        'Agreement of the votes': percent(answer.mean_agreement),
        'Mean uncertainty': percent(answer.mean_uncertainty),
      }),
      'Distance from training images': domain ? `${domain.distance.toFixed(2)} (threshold ${domain.threshold.toFixed(2)})` : 'not known',
      'Residual of the inversion': residualOf(domain),
      Size: `${answer.width} × ${answer.height}`,
      ...(answer.mirrored && { 'Also read': 'three mirror images' }),
      Model: `${answer.model} ${answer.version.slice(0, 8)}`,
    }
    get('facts').replaceChildren(
      ...Object.entries(rows).flatMap(([name, value]) => [element('dt', {}, name), element('dd', {}, value)]),
    )
  }

  async #downloads() {
    const { item } = this
    const signature = await item.file.slice(128, 132).text()
    if (this.item !== item) return
    get('downloads').replaceChildren(
      ...DOWNLOADS.filter(([, output]) => output !== 'dicom-seg' || signature === 'DICM').map(([text, output, suffix]) => {
        const button = element('button', { type: 'button' }, text)
        button.addEventListener('click', () => this.#download(button, output, suffix))
        return button
      }),
    )
  }

  async #download(button, output, suffix) {
    const { file, answer } = this.item
    const options = { output, model: answer.model, mirrored: answer.mirrored }
    if (output === 'overlay') options.opacity = get('opacity').value / 100
    button.disabled = true
    try {
      const url = URL.createObjectURL(await (await ask(file, options, { key: this.key() })).blob())
      element('a', { href: url, download: file.name.replace(/\.\w+$/, '') + suffix }).click()
      setTimeout(() => URL.revokeObjectURL(url), 60_000)
      this.say(`${file.name}: downloaded.`)
    } catch (error) {
      this.say(error.message, true)
    } finally {
      button.disabled = false
    }
  }
}

/** The text for the residual of the inversion, with its usual range if there is one. */
function residualOf(domain) {
  if (typeof domain?.residual !== 'number') return 'not known'
  const usual = domain.residual_range
  return domain.residual.toFixed(4) + (usual ? `, usual ${usual.map((bound) => bound.toFixed(4)).join(' to ')}` : '')
}

/** The figures outside their limits, in brackets; empty if there are none. */
function unusual(domain) {
  if (!domain) return ''
  const { distance, threshold, residual, residual_range: usual } = domain
  const figures = []
  if (distance > threshold) figures.push(`distance ${distance.toFixed(2)}, threshold ${threshold.toFixed(2)}`)
  if (usual && residual !== null && (residual < usual[0] || residual > usual[1])) figures.push(`residual ${residualOf(domain)}`)
  return figures.length ? ` (${figures.join('; ')})` : ''
}

/** Return whether a voter is a timestep; models that read several timesteps at once have other voters. */
function timestep(voter) {
  return /^\d+$/.test(voter)
}

function swatch(colour) {
  const made = element('span', { className: 'swatch' })
  made.style.background = colour
  return made
}
