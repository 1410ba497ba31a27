// Gapless playback of loops. Two loops can be compared: the other one goes on at the same place of its cycle.

const FADE_S = 0.01; // a change of loops or a stop makes no click
const RATES_HZ = [8000, 96000]; // that every browser plays

const playable = (rate) => Math.min(Math.max(rate, RATES_HZ[0]), RATES_HZ[1]);

export class Player {
  #context;
  #volume = 0.8;
  #output;
  #playing;

  /** Decode an audio file (ArrayBuffer) at its own sample rate, so that no resampling blurs the ends of a loop. */
  decode(file, sampleRate) {
    return new OfflineAudioContext(1, 1, playable(sampleRate)).decodeAudioData(file);
  }

  get isPlaying() {
    return Boolean(this.#playing);
  }

  /** The place in the loop, from 0 to 1. */
  get position() {
    if (!this.#playing) return 0;
    const { buffer, began } = this.#playing;
    return (Math.max(0, this.#context.currentTime - began) / buffer.duration) % 1;
  }

  set volume(value) {
    this.#volume = value;
    this.#output?.gain.setTargetAtTime(value, this.#context.currentTime, FADE_S);
  }

  /** Play a loop without a gap, from a place of its cycle. */
  async play(buffer, position = 0) {
    if (this.#context?.sampleRate !== buffer.sampleRate) this.#open(buffer.sampleRate);
    await this.#context.resume();
    this.stop();
    const now = this.#context.currentTime;
    const source = new AudioBufferSourceNode(this.#context, { buffer, loop: true });
    const fade = new GainNode(this.#context, { gain: 0 });
    fade.gain.setValueAtTime(0, now);
    fade.gain.linearRampToValueAtTime(1, now + FADE_S);
    source.connect(fade).connect(this.#output);
    source.start(now, position * buffer.duration);
    this.#playing = { source, fade, buffer, began: now - position * buffer.duration };
  }

  stop() {
    if (!this.#playing) return;
    const { source, fade } = this.#playing;
    const now = source.context.currentTime;
    fade.gain.cancelScheduledValues(now);
    fade.gain.setTargetAtTime(0, now, FADE_S / 3);
    source.stop(now + 3 * FADE_S);
    this.#playing = undefined;
  }

  #open(sampleRate) {
    this.stop();
    this.#context?.close();
    this.#context = new AudioContext({ sampleRate, latencyHint: "interactive" });
    this.#output = new GainNode(this.#context, { gain: this.#volume });
    this.#output.connect(this.#context.destination);
  }
}
